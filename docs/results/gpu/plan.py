"""One call of the plan: where everything lies, how long it may still take, and `sagan` run within that."""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SAGAN = [sys.executable, "-c", "from sagan.cli import main; main()"]


class Plan:
    """Where everything lies, and how long this call may still take."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.results = self.work / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + options.seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def sagan(
        self, *arguments: object, stdout: Path | None = None, done: Path | None = None, stop: bool = False
    ) -> int:
        """`sagan ARGUMENTS` within the time left, unless its result (`stdout` or `done`) is there; its exit code.

        `stop`: end it by SIGTERM in time to save what it has, instead of at the limit.
        """
        result = stdout or done
        words = [str(argument) for argument in arguments]
        if result is not None and result.exists():
            print(f"{result.name}: done before", flush=True)
            return 0
        if self.left < 2:
            print(f"sagan {' '.join(words)}: no time left; the same command goes on", flush=True)
            return 1
        print(f"+ sagan {' '.join(words)}", flush=True)
        partial = None if stdout is None else stdout.with_name(f".{stdout.name}")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with nullcontext() if partial is None else partial.open("wb") as out:
            process = subprocess.Popen([*SAGAN, *words], stdout=out, env=environment)
            code = self._wait(process, stop)
        if partial is not None and stdout is not None and code == 0:
            os.replace(partial, stdout)
        if code:
            print(f"it left with {code}", flush=True)
        return code

    def _wait(self, process: subprocess.Popen, stop: bool) -> int:
        try:
            return process.wait(max(self.left - (self.options.grace if stop else 0), 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(self.options.grace if stop else 5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

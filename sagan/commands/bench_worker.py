"""Processes of their own in which `sagan bench` measures, which may run out of memory, time or luck."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

Row = dict[str, Any]


class Worker:
    """A process that measures: it runs `code`, reads `task` on stdin and writes lines of JSON."""

    def __init__(self, code: str, task: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.errors: list[str] = []
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(json.dumps(task))
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._heed)]
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the compiler's own processes
        self.process.wait()
        for thread in self.threads:
            thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def what_happened(self, state: str) -> Row:
        """The row of a cell that gave none; of one that failed with the last line of stderr."""
        return {"state": state} | ({"why": self.errors[-1][:200]} if state == "failed" and self.errors else {})

    def read(self, seconds: float) -> Row | str:
        """The next line, or why there is none."""
        try:
            line = self.lines.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return "out of time"
        if line is None:
            self.threads[1].join(timeout=5)
            return "failed"
        return json.loads(line)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(line)
        self.lines.put(None)

    def _heed(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip():
                self.errors = [*self.errors[-20:], line.strip()]

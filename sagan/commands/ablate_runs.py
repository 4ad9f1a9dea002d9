"""Training the runs of an ablation: `sagan train` in a process each, one after another or several at a time.

Imports no torch. A process writes to a pipe of ours: when we are killed it ends at its next line, and does not train
on unseen.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sagan.commands.ablate_plan import Ablation, Key, Outcome, config_file
from sagan.files import make_folder
from sagan.memory import peak_resident_mib
from sagan.progress import Progress
from sagan.signals import caught_signals

TRAIN = "from sagan.cli import main; main()"
SECONDS_BETWEEN_LOOKS = 0.2
TAIL = 1 << 16  # bytes of a log that hold its last line


@dataclass
class Child:
    """A process that trains a run. `step`: how far it is known to have come."""

    key: Key
    process: subprocess.Popen[bytes]
    slot: int
    output: BinaryIO
    log: Path
    steps: int
    step: int
    started: float


def train_runs(
    ablation: Ablation, keys: Sequence[Key], slots: Sequence[str | None], on_gpu: bool,
    ended: Callable[[Key, Outcome], None],
) -> int | None:  # fmt: skip
    """Train the runs `keys`, as many at a time as there are `slots`: the GPUs that each may see, None: all.

    Returns the number of the signal that ended it early, or None. `ended` is called with what became of each run.
    The first signal lets the running ones save; a second kills them.
    """
    waiting, running = list(keys), list[Child]()
    left = sum(ablation.configs[variant].training.steps for variant, _ in keys)
    left -= sum(_last_step(ablation.run_folder(key) / "log.jsonl") for key in keys)
    told = False
    with caught_signals() as received, Progress(max(left, 1), f"{len(keys)} runs, steps") as progress, _killed(running):
        while running or (waiting and not received):
            while waiting and not received and len(running) < len(slots):
                slot = next(n for n in range(len(slots)) if n not in [child.slot for child in running])
                key = waiting.pop(0)
                print(f"[{len(keys) - len(waiting)}/{len(keys)}] {key[0]}, seed {key[1]}", file=sys.stderr, flush=True)
                running.append(_start(ablation, key, slot, slots))
            if received and not told:
                told = True
                for child in running:
                    child.process.send_signal(_other(received[0]))
            for child in [*running]:
                found = _look(child, progress, on_gpu)
                if found is not None:
                    running.remove(child)
                    ended(child.key, _after(ablation.runs[child.key], found, bool(received)))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return received[0] if received else None


def _start(ablation: Ablation, key: Key, slot: int, slots: Sequence[str | None]) -> Child:
    variant, seed = key
    run, output = ablation.run_folder(key), ablation.output_file(key)
    make_folder(output.parent)
    arguments = ["train", str(config_file(ablation.folder, variant)), "--out", str(run), "--set", f"seed={seed}"]
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, bufsize=0, env=environment_of(os.environ, slots[slot], len(slots)),
    )  # fmt: skip
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    log, steps = run / "log.jsonl", ablation.configs[variant].training.steps
    return Child(key, process, slot, open(output, "wb"), log, steps, _last_step(log), time.monotonic())


def environment_of(outside: Mapping[str, str], device: str | None, jobs: int) -> dict[str, str]:
    """Which GPU a process sees; and processes that share the CPU share its cores, or each would be slowed by all."""
    environment = dict(outside)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    elif jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment


def _other(received: int) -> int:
    """A signal that lets a run save. Not the one that we received: a terminal or a scheduler sends that to the run as
    well, and the second one of a kind kills."""
    return signal.SIGTERM if received == signal.SIGUSR1 else signal.SIGUSR1


def _look(child: Child, progress: Progress, on_gpu: bool) -> Outcome | None:
    """Keep what the process said, show how far it is; its outcome when it has ended."""
    pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
    assert child.process.stdout is not None
    while said := child.process.stdout.read(TAIL):
        child.output.write(said)
    child.output.flush()
    step = child.steps if pid else _last_step(child.log)
    progress.advance(max(0, step - child.step))
    child.step = max(child.step, step)
    if not pid:
        return None
    child.process.returncode = code = os.waitstatus_to_exitcode(status)
    child.process.stdout.close()
    child.output.close()
    peak = None if on_gpu else peak_resident_mib(usage)
    reason = "" if code == 0 else _reason(code, Path(child.output.name).read_text(errors="replace"))
    return Outcome("failed" if code else "done", reason, time.monotonic() - child.started, peak)


def _after(before: Outcome, now: Outcome, told: bool) -> Outcome:
    """The outcome of all sessions of a run: their seconds together, the highest peak."""
    peaks = [peak for peak in (before.peak_mib, now.peak_mib) if peak is not None]
    stopped = told and now.state == "failed"
    return Outcome(
        "stopped" if stopped else now.state, "" if stopped else now.reason, before.seconds + now.seconds,
        max(peaks, default=None),
    )  # fmt: skip


def _reason(code: int, output: str) -> str:
    """Why a process failed: the message to the user, or else its last line."""
    if code < 0:
        hint = ", as where memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    messages = [line.removeprefix("sagan: ") for line in lines if line.startswith("sagan: ")]
    return [f"exit code {code}", *lines, *messages][-1]


def _last_step(log: Path) -> int:
    """The step of the last whole line of a log; 0 without one."""
    with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = re.findall(rb"[^\n]+(?=\n)", file.read())
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(lines[-1])["step"]) if lines else 0
    return 0


@contextlib.contextmanager
def _killed(running: list[Child]) -> Iterator[None]:
    """Leaves no process behind, however the block ends."""
    try:
        yield
    finally:
        for child in running:
            child.process.kill()
            child.process.wait()
            child.output.close()

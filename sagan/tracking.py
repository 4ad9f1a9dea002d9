"""What a run says while it goes: log.jsonl, trackers, and a live line on a terminal or plain lines when piped."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sagan.files import append_json_line, atomic_file

SHOWN = ("d_loss", "g_loss", "real_logits", "fake_logits")


class RunLog:
    """The log of one process; a silent one (not the main process) writes nothing.

    `track(values, step)` hands values to trackers such as TensorBoard.
    """

    def __init__(self, run: Path, start: int, steps: int, images_per_step: int,
                 track: Callable[[dict[str, float], int], None], silent: bool = False):  # fmt: skip
        self.path, self.start, self.steps, self.images_per_step = run / "log.jsonl", start, steps, images_per_step
        self.track, self.silent = track, silent
        self._since = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() and not silent else None
        if self._bar is not None:
            self._bar.add_task("", total=steps, completed=start, rate="")
            self._bar.start()
        if not silent:
            truncate_log(self.path, start)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, rate=self._pace(step))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append one line to log.jsonl, hand the values to the trackers, show the main ones."""
        if self.silent:
            return
        values = values | {"images_per_second": round(self.rate(step), 2)}
        append_json_line(self.path, {"step": step, "kimg": step * self.images_per_step / 1000, **values})
        self.track(values, step)
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=shown)
        else:
            self.say(f"step {step}/{self.steps}  {shown}  {self._pace(step)}")

    def say(self, message: str) -> None:
        """One line for the user, above the live line."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif not self.silent:
            print(message, file=sys.stderr, flush=True)

    def restart(self, step: int) -> None:
        """The run goes on from an earlier `step`: its pace is counted from there."""
        self.start, self._since = step, time.monotonic()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rate(self, step: int) -> float:
        """Images of data per second since this process began to train."""
        return (step - self.start) * self.images_per_step / max(time.monotonic() - self._since, 1e-9)

    def _pace(self, step: int) -> str:
        rate = self.rate(step)
        left = round((self.steps - step) * self.images_per_step / rate) if rate else 0
        return f"{rate:.1f} img/s  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def truncate_log(path: Path, step: int, keep: Path | None = None) -> None:
    """Drop the lines after `step`, and a line that a kill cut short: what a resumed run will write again.

    `keep`: a file that gets what was dropped.
    """
    if not path.exists():
        return
    kept, dropped, text = [], [], path.read_text(errors="replace")
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
                continue
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        dropped.append(line)
    if keep is not None and dropped:
        with atomic_file(keep) as temporary:
            temporary.write_text("".join(dropped))
    if "".join(kept) != text:
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept))


def _bar() -> Progress:
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        *(TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[rate]}")),
    )
    return Progress(*columns, console=Console(stderr=True))

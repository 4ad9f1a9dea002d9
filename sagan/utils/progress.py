"""Progress of long work, on stderr: a live bar on a terminal, a plain line every few seconds when piped."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Context manager that shows how far `total` pieces of work have come.

        with Progress(total=len(files), description="reading") as progress:
            for group in groups_of(files):
                progress.advance(len(group))

    A terminal shows bar, rate and time left. Elsewhere a line is written every 5 s, and one at the end of work that
    took longer and succeeded. Call it from one thread. `quiet` shows nothing: for all processes but the first.
    """

    def __init__(self, total: int, description: str, quiet: bool = False) -> None:
        self.total, self.description, self.quiet, self.done = total, description, quiet, 0
        self._bar = _bar() if sys.stderr.isatty() and not quiet else None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.add_task(self.description, total=self.total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not self.quiet and self._elapsed() >= SECONDS_BETWEEN_LINES:
            print(f"{self.description}: {self.done} in {_seconds(self._elapsed())} ({self._rate()})", file=sys.stderr)

    def advance(self, n: int = 1) -> None:
        """`n` more pieces are done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=self._rate())
        elif not self.quiet and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self._elapsed() * max(self.total - self.done, 0) / max(self.done, 1)
            line = f"{self.description}: {self.done}/{self.total} ({self._rate()}, {_seconds(left)} left)"
            print(line, file=sys.stderr, flush=True)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def _rate(self) -> str:
        rate = self.done / self._elapsed()
        return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield from `items` and show the progress; an item counts as done when the next one is asked for."""
    with Progress(total, description) as progress:
        for item in items:
            yield item
            progress.advance()


def _bar() -> rich_progress.Progress:
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=False,
    )


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"

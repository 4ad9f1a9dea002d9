"""Messages and progress on stderr: a bar on a terminal, otherwise a line every few seconds, in a notebook in place."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0
_silent = ContextVar("silent", default=False)


@contextmanager
def silenced(quiet: bool = True) -> Iterator[None]:
    """Show neither messages nor progress in this block, if `quiet`."""
    token = _silent.set(quiet or _silent.get())
    try:
        yield
    finally:
        _silent.reset(token)


def say(line: str) -> None:
    """Print a line on stderr, unless `silenced`."""
    if not _silent.get():
        print(line, file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether progress is a bar: on a terminal, unless `silenced`."""
    return sys.stderr.isatty() and not _silent.get()


def in_cell() -> Callable[..., None] | None:
    """What shows an object in the cell of a notebook, and at each further call the next one in its place.

    None outside a notebook. Its options are those of IPython's `display`.
    """
    python = sys.modules.get("IPython")
    if python is None or not hasattr(python.get_ipython(), "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found]

    handles: list[Any] = []

    def show(shown: Any, **options: Any) -> None:
        if handles:
            handles[0].update(shown, **options)
        else:
            handles.append(display(shown, display_id=True, **options))

    return show


def status_line() -> Callable[[str], None]:
    """What prints the lines of a progress on stderr, or shows the newest one in the cell of a notebook."""
    show = None if _silent.get() else in_cell()
    return say if show is None else lambda line: show({"text/plain": line}, raw=True)


class Progress:
    """Context manager that shows how many of `total` items are done.

        with Progress(total=len(files), description="reading") as progress:
            for group in groups_of(files):
                progress.advance(len(group))

    A terminal shows a bar with rate and time left. Otherwise a line is printed every 5 s, and one at the end of
    successful work that took longer; in a notebook, each in place of the one before. Call it from one thread. `quiet`,
    or in a `silenced` block: show nothing.
    """

    def __init__(self, total: int, description: str, quiet: bool = False) -> None:
        self.total, self.description, self.quiet, self.done = total, description, quiet or _silent.get(), 0
        self._bar, self._line = None, status_line()
        if shows_bars() and not quiet:
            columns = BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}", TimeRemainingColumn()
            self._bar = Bar("{task.description}", *columns, console=Console(stderr=True))
            self._bar.add_task(description, total=total, rate="")

    def __enter__(self) -> "Progress":
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not self.quiet and self._elapsed() >= SECONDS_BETWEEN_LINES:
            self._line(f"{self.description}: {self.done} in {_seconds(self._elapsed())} ({self._rate()})")

    def advance(self, n: int = 1) -> None:
        """Mark `n` more items as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=self._rate())
        elif not self.quiet and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self._elapsed() * max(self.total - self.done, 0) / max(self.done, 1)
            self._line(f"{self.description}: {self.done}/{self.total} ({self._rate()}, {_seconds(left)} left)")

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def _rate(self) -> str:
        rate = self.done / self._elapsed()
        return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield the items and show the progress; an item is done when the next one is requested."""
    with Progress(total, description) as progress:
        for item in items:
            yield item
            progress.advance()


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"

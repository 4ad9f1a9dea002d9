"""What comes of a command that meets a hostile file: its code, what it says, and what it changed."""

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from command_line import sagan

MOST_LINES = 5


class Outcome(NamedTuple):
    """Exit code (-1 for a traceback), stderr, and the names of all that is no longer as it was."""

    code: int
    message: str
    changed: list[str]


def attempt(command: str, root: Path) -> Outcome:
    """Run a command in this process, in `root`."""
    before, message = contents(root), io.StringIO()
    with redirect_stderr(message), redirect_stdout(io.StringIO()):
        try:
            code = sagan(*shlex.split(command))
        except Exception as error:  # what a user would see as a traceback
            code = -1
            print(f"Traceback … {type(error).__name__}: {error}", file=message)
    after = contents(root)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Outcome(code, message.getvalue(), changed)


def assert_refused(command: str, says: str, root: Path) -> None:
    """Exit code 2, a few printable lines that hold `says`, and nothing written."""
    code, message, changed = attempt(command, root)
    assert "Traceback" not in message, message
    assert says in message
    assert code == 2
    assert changed == []
    assert len(message.splitlines()) <= MOST_LINES
    assert all(line.isprintable() for line in message.splitlines())


def contents(root: Path) -> dict[str, tuple[float, int]]:
    """Time of change and size of everything below a folder but links' targets."""
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in root.rglob("*") if not p.is_dir()}

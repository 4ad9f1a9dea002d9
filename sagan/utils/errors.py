"""Errors for the user: one message, no traceback."""

import difflib
import errno
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_LINE = 1500  # characters; the middle of a longer one is left out
LONGEST_VALUE = 200  # characters of a wrong value
MOST_NAMES = 25
FULL, DENIED = "the disk is full", "no permission to read or write it"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # messages of CUDA and of torch's CPU allocator
SYSTEM_ERRORS = {  # errors that users can cause anywhere; any other OSError is a bug
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL,
    errno.EACCES: DENIED, errno.EPERM: DENIED, errno.EROFS: DENIED,
    errno.ENAMETOOLONG: "the name is too long",
}  # fmt: skip


class UserError(ValueError):
    """An error the user can fix. The message states what is wrong, where, and how to fix it.

    The command line prints only the message and exits with code 2; any other exception is a bug. Since messages quote
    untrusted files, unprintable characters are escaped and long lines shortened. Further lines begin with two spaces.

    Examples:
        >>> try:
        ...     sagan.sample("runs/shapes", seeds=4, truncation=-1)
        ... except sagan.UserError as error:
        ...     print(error)
        --truncation -1: expected a positive number, such as 0.7
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(_shortened(escaped(line)) for line in re.split(r"\n(?=  \S)", message)))


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise a full disk, a lack of permission and a lack of memory as UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        reason = f"{error.filename or 'output'}: {SYSTEM_ERRORS[error.errno]}; no incomplete files were left"
        raise UserError(reason) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        reason = "not enough memory; lower training.batch_size (raise optim.accumulation) or the channels"
        raise UserError(reason) from error


def escaped(text: str) -> str:
    """Escape unprintable characters as in a Python string."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(name: str, known: Collection[str], prefix: str = "", otherwise: str = "") -> str:
    """A hint for an unknown name: the nearest known name, else `otherwise` or a list of the known names.

    `prefix` is put before the nearest name, such as the group of a setting.
    """
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {prefix}{near[0]}?"
    if otherwise:
        return otherwise
    shown = list(known)[:MOST_NAMES]
    return f"known: {', '.join(shown)}{', …' if len(known) > MOST_NAMES else ''}"


def first_error(error: "ValidationError") -> str:
    """The first error of pydantic as one line: the field, what is wrong, and the wrong value."""
    finding = error.errors()[0]
    where = "".join(f"{part}." for part in finding["loc"])[:-1][:100]
    reason = finding["msg"].removeprefix("Value error, ")
    if finding["type"] != "value_error":  # from pydantic, not from our validators
        reason = reason[:1].lower() + reason[1:]
        if finding["type"] != "missing":
            shown = repr(finding["input"])
            reason += f", not {shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + '…'}"
    return f"{where}: {reason}" if where else reason


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 3 :]}"


class Interrupted(Exception):
    """Long work has stopped because it was asked to; the same call continues it."""

"""Errors for the user: one message, no traceback."""

import difflib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_LINE = 1500  # characters; the middle of a longer one is left out
LONGEST_VALUE = 200  # characters of a wrong value
MOST_NAMES = 25


class UserError(ValueError):
    """An error the user can fix. The message states what is wrong, where, and how to fix it.

    The command line prints only the message and exits with code 2; any other exception is a bug. Since messages quote
    untrusted files, unprintable characters are escaped and long lines shortened. Further lines begin with two spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(_shortened(escaped(line)) for line in re.split(r"\n(?=  \S)", message)))


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

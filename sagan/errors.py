"""What a user can do wrong, said in one line."""

import re

LONGEST_LINE = 1500  # characters; the middle of a longer one is left out


class UserError(ValueError):
    """A mistake of the user: the message says what was wrong, where, and what would be right.

    The command line prints the message alone and leaves with exit code 2; any other exception is a
    defect of ours and keeps its traceback. Messages quote names and values from files that may be hostile: control
    characters and broken encodings are escaped, a very long line is shortened. Further lines begin with two spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(_shortened(escaped(line)) for line in re.split(r"\n(?=  \S)", message)))


def escaped(text: str) -> str:
    """Text fit for a terminal, in one line: what is not printable is written as in a Python string."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 3 :]}"

"""How every `sagan bench` tells what it found: a table for people, or one JSON object."""

import json
import sys
from collections.abc import Sequence
from typing import Any


def show(result: dict[str, Any], as_json: bool, text: str | None = None, note: str = "") -> None:
    """Print `result` as one JSON object; or for people `text` (None: one line a value), and `note` on stderr."""
    if as_json:
        print(json.dumps(result))
        return
    print(lines_of(result) if text is None else text)
    if note:
        print(note, file=sys.stderr)


def lines_of(result: dict[str, Any]) -> str:
    """One line a value: its name, then the value, fractions to four digits."""
    width = max(map(len, result))
    return "\n".join(
        f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}"
        for name, value in result.items()
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )

"""Columns of text under headings, broken into blocks where they are wider than the terminal."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len  # letters of East Asia and emoji are two characters wide

GAP = "  "
LONGEST_VALUE = 24  # characters


@dataclass(frozen=True)
class Column:
    """A heading of one line or more, and one cell a row. Numbers stand at the right, words at the left.

    `beside`: stays in one block with the column before it.
    """

    heading: str
    cells: tuple[str, ...]
    words: bool = False
    beside: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, [*self.heading.split("\n"), *self.cells]))

    def lines(self, heading_height: int) -> list[str]:
        """The column as lines of equal width; its heading stands on a rule."""
        above = self.heading.split("\n")
        above = [""] * (heading_height - len(above)) + above
        texts = [*above, "-" * self.width, *self.cells]
        blanks = [" " * (self.width - cell_len(text)) for text in texts]
        return [text + blank if self.words else blank + text for text, blank in zip(texts, blanks, strict=True)]


def render(columns: Sequence[Column], width: int) -> str:
    """The table; what does not fit into `width` characters follows below, the first column repeated beside it."""
    first, units = columns[0], list[list[Column]]()
    for column in columns[1:]:
        if column.beside:
            units[-1].append(column)
        else:
            units.append([column])
    blocks, block = list[str](), [first]
    for unit in units:
        if len(block) > 1 and sum(c.width + len(GAP) for c in [*block, *unit]) - len(GAP) > width:
            blocks.append(_block(block))
            block = [first]
        block += unit
    return "\n\n".join([*blocks, _block(block)])


def wrapped(notes: Iterable[str], width: int) -> str:
    """Notes one under the other, the lines of one that is longer than `width` indented from the second on."""
    lines = (textwrap.fill(note, max(width, 40), subsequent_indent="   ", break_on_hyphens=False) for note in notes)
    return "\n".join(lines)


def shortened(text: str, longest: int = LONGEST_VALUE) -> str:
    """The text, its middle left out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def value_text(value: Any) -> str:
    """A setting as YAML would show it, shortened; "-" for none."""
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shortened(" ".join(text.split()))


def trimmed(cells: Sequence[str]) -> tuple[str, ...]:
    """Without the blanks that all cells end in."""
    blanks = min(len(cell) - len(cell.rstrip()) for cell in cells)
    return tuple(cell[: len(cell) - blanks] for cell in cells)


def _block(columns: Sequence[Column]) -> str:
    height = max(column.heading.count("\n") + 1 for column in columns)
    lines = zip(*(column.lines(height) for column in columns), strict=True)
    return "\n".join(GAP.join(line).rstrip() for line in lines)

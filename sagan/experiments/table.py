"""Tables of runs and scores, as text and as Markdown."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sagan.evaluation.registry import DIRECTION, score_decimals

LONGEST_VALUE, NONE = 24, "-"


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each row; `words`: aligned left; `bold`: rows with the best values."""

    heading: str
    cells: Sequence[str]
    words: bool = False
    bold: frozenset[int] = frozenset()


def table_width(piped: int) -> int:
    """Columns of the terminal, or `piped` if stdout is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else piped


def text_table(columns: Sequence[Column], width: int) -> str:
    """A table; columns beyond `width` characters wrap into further blocks that repeat the first column."""
    blocks, block = [], [columns[0]]
    for column in columns[1:]:
        if len(block) > 1 and _console().measure(_table([*block, column])).maximum > width:
            blocks.append(block)
            block = [columns[0]]
        block.append(column)
    texts = []
    for each in [*blocks, block]:
        file = io.StringIO()
        _console(file).print(_table(each))
        texts.append("\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n"))
    return "\n\n".join(texts)


def _console(file: io.StringIO | None = None) -> Console:
    """Plain text in a notebook, too, which sets FORCE_COLOR."""
    return Console(file=file, width=10_000, color_system=None, force_jupyter=False)


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column.heading), justify="left" if column.words else "right", no_wrap=True)
    for i in range(len(columns[0].cells)):
        table.add_row(*(Text(column.cells[i] + (" *" if i in column.bold else "")) for column in columns))
    return table


def markdown_table(columns: Sequence[Column]) -> str:
    """A Markdown table, best values in bold."""
    lines = [
        f"| {' | '.join(column.heading for column in columns)} |",
        f"|{'|'.join('---' if column.words else '---:' for column in columns)}|",
    ]
    for i in range(len(columns[0].cells)):
        cells = (f"**{column.cells[i]}**" if i in column.bold else column.cells[i] for column in columns)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def arrow(metric: str) -> str:
    """The metric with an arrow: up if higher is better."""
    return f"{metric} {'↑' if DIRECTION[metric] > 0 else '↓'}"


def score_text(metric: str, value: float) -> str:
    """A score with the usual decimals of its metric."""
    return f"{value:.{score_decimals(metric)}f}"


def mean_text(values: Sequence[float], text: Callable[[float], str]) -> str:
    """ "mean ± standard deviation" (divisor n - 1), or the only value."""
    if not values:
        return NONE
    return text(fmean(values)) + (f" ± {text(stdev(values))}" if len(values) > 1 else "")


def step_text(step: int | None) -> str:
    return "?" if step is None else f"{step:,}"


def value_text(value: Any) -> str:
    """A setting as in YAML, shortened; "-" for none."""
    text = NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shortened(" ".join(text.split()))


def shortened(text: str, longest: int = LONGEST_VALUE) -> str:
    """The text, with its middle left out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"

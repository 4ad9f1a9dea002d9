"""The table of an ablation: a row a variant, mean ± standard deviation over seeds, the best in bold. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sagan.commands.ablate_numbers import Row, leaders, metrics_of, unlike
from sagan.commands.ablate_plan import Ablation
from sagan.comparison.notes import score_text
from sagan.evaluation.metric_names import DIRECTION

NONE = "-"
HEALTH = {"gamma": "gamma", "entropy": "entropy", "far_mass": "far mass"}


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each row; `bold`: rows that are the best."""

    heading: str
    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()

    @property
    def width(self) -> int:
        """On a terminal, with its border and blanks."""
        return max(map(cell_len, [self.heading, *self.cells])) + 3


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Variant, number of runs, scores, then parameters, speed, memory and attention; without columns that are empty."""
    columns = [Column("n", tuple(str(len(row.runs)) for row in rows))]
    for metric in metrics_of(rows):
        best = leaders(rows, metric)
        columns.append(
            Column(
                f"{metric} {'↑' if DIRECTION[metric] > 0 else '↓'}",
                tuple(_cell(row.values(metric), partial(score_text, metric)) for row in rows),
                frozenset(i for i, row in enumerate(rows) if row.name in best),
            )
        )
    for place, player in enumerate("GD"):
        cells = (f"{row.parameters[place]:,}" if any(row.parameters) else NONE for row in rows)
        columns.append(Column(f"parameters {player}", tuple(cells)))
    for heading, name in (("images/s", "images_per_second"), ("memory MiB", "peak_mib")):
        values = ([getattr(run, name) for run in row.runs] for row in rows)
        columns.append(Column(heading, tuple(_cell(one, _three_digits) for one in values)))
    for number, word in HEALTH.items():
        for player in "gd":
            columns.append(Column(f"{word} {player.upper()}", tuple(_health(row, player, number) for row in rows)))
    filled = [column for column in columns if any(cell != NONE for cell in column.cells)]
    return [Column("variant", tuple(row.name for row in rows)), *filled]


def markdown(ablation: Ablation, rows: Sequence[Row], picture: str | None) -> str:
    """ablation.md: what was varied, the table, notes; `picture`: a file beside it."""
    columns = columns_of(rows)
    lines = [
        f"| {' | '.join(column.heading for column in columns)} |",
        f"|{'|'.join('---' if i == 0 else '---:' for i in range(len(columns)))}|",
    ]
    for i in range(len(rows)):
        cells = (f"**{column.cells[i]}**" if i in column.bold else column.cells[i] for column in columns)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    said = [f"# {title(ablation)}", about(ablation), "\n".join(lines), *notes(ablation, rows)]
    return "\n\n".join([*said, *([f"![samples and attention]({picture})"] if picture else [])]) + "\n"


def print_table(ablation: Ablation, rows: Sequence[Row], console: Console) -> None:
    """The same on a terminal, in several parts, scores first, where it is too wide for one."""
    columns = columns_of(rows)
    console.print(f"{title(ablation)}\n{about(ablation)}", markup=False, highlight=False)
    part = columns[:1]
    for column in columns[1:]:
        if len(part) > 1 and sum(c.width for c in [*part, column]) + 1 > console.width:
            console.print(_table(part))
            part = columns[:1]
        part.append(column)
    console.print(_table(part))
    for line in notes(ablation, rows):
        console.print(line, markup=False, highlight=False)


def title(ablation: Ablation) -> str:
    return f"Ablation of {', '.join(ablation.keys)}"


def about(ablation: Ablation) -> str:
    """What all variants share, in a line."""
    base = ablation.base
    return (
        f"{base.data.source} at {base.data.resolution} px, {base.training.steps:,} steps of {base.training.batch_size} "
        f"images, {base.evaluate.num:,} samples scored; mean ± standard deviation over n seeds, the best in bold."
    )


def notes(ablation: Ablation, rows: Sequence[Row]) -> list[str]:
    """What is not done and why, and scores that cannot be compared."""
    said = []
    for metric in metrics_of(rows):
        if unlike(rows, metric):
            said.append(f"{metric}: not measured alike in all runs, so none is called the best.")
    for key, outcome in sorted(ablation.runs.items()):
        if not ablation.finished(key) and outcome.state == "failed":
            file = ablation.output_file(key).relative_to(ablation.folder)
            said.append(f"failed: {key[0]}, seed {key[1]}: {outcome.reason} ({file})")
    undone = [
        f"{variant} (seed {seed})"
        for (variant, seed), outcome in sorted(ablation.runs.items())
        if outcome.state != "failed" and not ablation.finished((variant, seed))
    ]
    return [*said, *([f"not done yet: {', '.join(undone)}"] if undone else [])]


def _table(columns: Sequence[Column]) -> Table:
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(
            column.heading, justify="left" if i == 0 else "right", overflow="fold", no_wrap=len(columns) > 2
        )
    for row in range(len(columns[0].cells)):
        table.add_row(*(Text(c.cells[row], style="bold" if row in c.bold else "") for c in columns))
    return table


def _health(row: Row, player: str, number: str) -> str:
    """One number for each module of a player, in the order of the network."""
    return ", ".join(_cell(values, _two_digits) for values in row.health(player, number).values()) or NONE


def _cell(values: Sequence[float], text: Callable[[float], str]) -> str:
    if not values:
        return NONE
    return text(fmean(values)) + (f" ± {text(stdev(values))}" if len(values) > 1 else "")


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")

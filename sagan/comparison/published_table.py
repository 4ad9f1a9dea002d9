"""Published results as text: a block of their own, never ranked with scores of runs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sagan.comparison.columns import Column, render, wrapped
from sagan.comparison.notes import score_text
from sagan.comparison.runs import RunRecord
from sagan.errors import UserError
from sagan.evaluation.metric_names import DIRECTION
from sagan.published import DATA_SETS, notes_on, published_results, recognise

RECOGNISE = "auto"  # take the data sets of the runs


def published_data(runs: Sequence[RunRecord], asked: str) -> list[str]:
    """The data sets whose published results are shown: the one that is named, or with "auto" those of the runs.

    UserError for a name without published results, and where none of the runs' data sets is recognised.
    """
    if asked != RECOGNISE:
        return [asked] if published_results(asked) else []
    found = [recognise(run.class_names, run.config.data.resolution) for run in runs]
    if data := [name for name in DATA_SETS if name in found]:
        return data
    raise UserError(
        f"--published: the data of these runs are none with published results; name one of {', '.join(DATA_SETS)}"
    )


def published_text(data: str, width: int) -> str:
    """The published rows of a data set under their heading, and what has to be known before one reads them."""
    rows = published_results(data)
    metrics = [metric for metric in DIRECTION if any(metric in row.scores for row in rows)]
    columns = [Column("published", tuple(row.source for row in rows), words=True)]
    for metric in metrics:
        cells = [score_text(metric, row.scores[metric]) if metric in row.scores else "-" for row in rows]
        columns.append(Column(f"{metric} {'↑' if DIRECTION[metric] > 0 else '↓'}", tuple(cells)))
    columns.append(Column("how measured", tuple(row.protocol for row in rows), words=True))
    return "\n\n".join([f"published results on {data}", render(columns, width), wrapped(notes_on(data), width)])


def published_record(data: Sequence[str]) -> dict[str, Any]:
    """The rows and the notes as plain values."""
    rows = [asdict(row) for name in data for row in published_results(name)]
    return {"published": rows, "published_notes": list(dict.fromkeys(n for name in data for n in notes_on(name)))}

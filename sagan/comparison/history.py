"""One run as text: a row a scored step."""

from sagan.comparison.columns import Column, render, trimmed, wrapped
from sagan.comparison.notes import (
    BRACKETS,
    STAR,
    Footnotes,
    heading,
    measured_notes,
    score_text,
    step_text,
    warning_notes,
    why_apart,
)
from sagan.comparison.scores import Comparison, Series


def history_text(comparison: Comparison, width: int) -> str:
    """The scores of the only run by step, a column for each metric and way of measuring it, and the notes."""
    (run,) = comparison.runs
    title = f"{run.name}: {run.step:,} steps, {run.images(run.step):,} images seen"
    if not comparison.series:
        return f"{title}; no score yet"
    steps = sorted({point.step for s in comparison.series for point in s.points}, key=lambda step: step or -1)
    columns = [
        Column("step", tuple(map(step_text, steps))),
        Column("images\nseen", tuple("?" if step is None else f"{run.images(step):,}" for step in steps)),
    ]
    footnotes = Footnotes()
    for metric in comparison.metrics():
        shared = comparison.shared(metric)
        for series in sorted(comparison.of(metric), key=lambda s: _place(s, shared)):
            cells = _cells(comparison, series, steps, footnotes)
            columns.append(Column(heading(comparison, metric, _place(series, shared)), cells))
    starred = any("*" in cell for column in columns[2:] for cell in column.cells)
    notes = [*([STAR] if starred else []), *([BRACKETS] if footnotes.letters else []), *footnotes.lines()]
    notes += [*measured_notes(comparison), *warning_notes(comparison)]
    return "\n\n".join([title, render(columns, width), wrapped(notes, width)])


def _cells(comparison: Comparison, series: Series, steps: list[int | None], footnotes: Footnotes) -> tuple[str, ...]:
    values = {point.step: point.value for point in series.points}
    texts = {step: score_text(series.metric, value) for step, value in values.items()}
    if series.group is None:
        letter = footnotes.mark(why_apart(comparison, series))
        return trimmed([f"({texts[step]}) {letter}" if step in texts else "-   " for step in steps])
    assert series.best is not None
    best = {step for step, value in values.items() if value == series.best.value and len(set(values.values())) > 1}
    return trimmed([f"{texts.get(step, '-')}{' *' * (step in best):2}" for step in steps])


def _place(series: Series, shared: list[int]) -> int:
    """Of the series' column among those of its metric; scores without a protocol come last."""
    return len(shared) if series.group is None else shared.index(series.group)

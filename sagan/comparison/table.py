"""Several runs as text: a row a run, its steps, the settings in which it differs, its newest and best scores."""

from typing import Any

from sagan.comparison.columns import Column, render, trimmed, value_text, wrapped
from sagan.comparison.notes import (
    BRACKETS,
    STAR,
    Footnotes,
    heading,
    measured_notes,
    score_text,
    scoreless_note,
    step_text,
    warning_notes,
    why_apart,
)
from sagan.comparison.runs import Score, differing_settings
from sagan.comparison.scores import Comparison, Series


def table_text(comparison: Comparison, width: int) -> str:
    """The table, at most `width` characters wide where its columns allow, and the notes under it."""
    runs, footnotes = comparison.runs, Footnotes()
    columns = [
        Column("run", tuple(run.name for run in runs), words=True),
        Column("steps", tuple(f"{run.step:,}" for run in runs)),
        Column("images\nseen", tuple(f"{run.images(run.step):,}" for run in runs)),
    ]
    for name, values in _telling(differing_settings(runs)).items():
        columns.append(Column(name.replace(".", ".\n"), tuple(map(value_text, values))))
    for metric in comparison.metrics():
        for place in range(max(1, len(comparison.shared(metric)))):
            columns += _newest_and_best(comparison, metric, place, footnotes)
    starred = any(comparison.leaders(s.metric, s.group) for s in comparison.series if s.group is not None)
    notes = [*([STAR] if starred else []), *([BRACKETS] if footnotes.letters else []), *footnotes.lines()]
    notes += [*measured_notes(comparison), *_not_shown(comparison), *warning_notes(comparison)]
    notes += scoreless_note(comparison)
    return "\n\n".join([render(columns, width), *([wrapped(notes, width)] if notes else [])])


def _telling(settings: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The settings without those options of a module that are there or not with the module, and otherwise equal."""

    def follows(name: str, values: list[Any]) -> bool:
        module = f"{name.rpartition('.')[0]}.name"
        there = [value for value in values if value is not None]
        return name != module and module in settings and len(there) < len(values) and there == there[:1] * len(there)

    return {name: values for name, values in settings.items() if not follows(name, values)}


def _newest_and_best(comparison: Comparison, metric: str, place: int, footnotes: Footnotes) -> tuple[Column, Column]:
    """The scores of every run that were measured as this column says; in the first one, others in brackets."""
    shared = comparison.shared(metric)
    group = shared[place] if shared else None
    leaders = comparison.leaders(metric, group) if group is not None else set()
    newest, best = [], []
    for number, run in enumerate(comparison.runs):
        series = _shown(comparison, metric, place, number)
        text = "-" if series is None else _with_step(series.newest, run.step)
        apart = series is not None and (series.group is None or series.group != group)
        newest.append(f"({text}) {footnotes.mark(why_apart(comparison, series))}" if series and apart else f"{text}   ")
        top = None if series is None or apart else series.best
        best.append(f"{'-' if top is None else _with_step(top)}{' *' * (number in leaders):2}")
    above = heading(comparison, metric, place)
    return Column(f"{above}\nnewest", trimmed(newest)), Column(f"{above}\nbest", trimmed(best), beside=True)


def _shown(comparison: Comparison, metric: str, place: int, run: int) -> Series | None:
    """What a column shows of a run; where no column fits its scores, the first one shows them."""
    shared, series = comparison.shared(metric), comparison.of(metric, run)
    inside = [s for s in series if shared and s.group == shared[place]]
    homeless = place == 0 and all(s.group not in shared for s in series)
    return next(iter(inside or (series if homeless else [])), None)


def _not_shown(comparison: Comparison) -> list[str]:
    """A line for each series that has no place in the table."""
    lines: dict[tuple[str, str], list[str]] = {}
    for metric in comparison.metrics():
        places = range(max(1, len(comparison.shared(metric))))
        for number, run in enumerate(comparison.runs):
            shown = [_shown(comparison, metric, place, number) for place in places]
            for series in comparison.of(metric, number):
                if series not in shown:
                    line = lines.setdefault((run.name, why_apart(comparison, series)), [])
                    line.append(f"{metric} {_with_step(series.newest)}")
    return [f"{name}: also {', '.join(scores)}; {why}" for (name, why), scores in lines.items()]


def _with_step(score: Score, now: int | None = None) -> str:
    """The score and the step at which it was taken, which goes without saying where it is `now`."""
    text = score_text(score.metric, score.value)
    return text if score.step is not None and score.step == now else f"{text} @ {step_text(score.step)}"

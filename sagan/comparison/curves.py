"""Which curves a comparison draws: the scores of one metric, or the losses where there are no scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sagan.comparison.notes import score_text, step_text
from sagan.comparison.protocols import protocol_words
from sagan.comparison.runs import LOSSES, RunRecord, read_losses
from sagan.comparison.scores import Comparison, Series
from sagan.evaluation.metric_names import DIRECTION

MOST_POINTS = 60  # of a loss; beyond, neighbours are averaged
WIDE_RANGE = 4  # a positive score that spans more than this factor is drawn on a logarithmic axis
LOSS_NAMES = {"d_loss": "discriminator loss", "g_loss": "generator loss"}


@dataclass(frozen=True)
class Curve:
    """Points (images seen, value) of a run; `apart`: not to be compared with the others; `best`: one of the points."""

    run: int
    points: tuple[tuple[float, float], ...]
    label: str
    apart: bool = False
    best: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    title: str
    subtitle: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False


def charts(comparison: Comparison) -> list[Chart]:
    """One chart of the main metric, or one of each loss; [] when nothing was scored or logged."""
    metric = main_metric(comparison)
    if metric is not None:
        return [_score_chart(comparison, metric)]
    losses = [read_losses(run) for run in comparison.runs]
    drawn = []
    for name in LOSSES:
        curves = [
            _loss_curve(run, number, name[0].upper(), found[name])
            for number, (run, found) in enumerate(zip(comparison.runs, losses, strict=True))
            if name in found
        ]
        drawn += [Chart(LOSS_NAMES[name], "of training; no run is scored yet", tuple(curves))] if curves else []
    return drawn


def main_metric(comparison: Comparison) -> str | None:
    """fid, else the first that all runs have, else coherence, else the first there is; None without any score."""
    metrics = comparison.metrics()
    everywhere = [m for m in metrics if len({s.run for s in comparison.of(m)}) == len(comparison.runs)]
    order = [*(["fid"] if "fid" in metrics else []), *everywhere, *(["coherence"] if "coherence" in metrics else [])]
    return next(iter([*order, *metrics]), None)


def _score_chart(comparison: Comparison, metric: str) -> Chart:
    shared = comparison.shared(metric)
    group = shared[0] if shared else None
    curves = []
    for number, run in enumerate(comparison.runs):
        series = comparison.of(metric, number)
        if series:
            chosen = next((s for s in series if s.group == group), series[0])
            curves.append(_score_curve(run, chosen, group))
    values = [value for curve in curves for _, value in curve.points]
    wide = DIRECTION[metric] < 0 and min(values, default=0) > 0 and max(values) > WIDE_RANGE * min(values)
    better = "higher" if DIRECTION[metric] > 0 else "lower"
    title = f"{metric}, {better} is better" + (" (log scale)" if wide else "")
    words = "no protocol is known" if group is None else protocol_words(comparison.groups[group])
    return Chart(title, words, tuple(curves), wide)


def _score_curve(run: RunRecord, series: Series, group: int | None) -> Curve:
    def place(step: int, value: float) -> tuple[float, float]:
        return float(run.images(step)), value

    points = tuple(place(p.step, p.value) for p in series.points if p.step is not None)
    newest, best = series.newest, series.best
    apart = series.group is None or series.group != group
    if best is None or apart:
        why = "no protocol known" if series.group is None else "measured otherwise"
        return Curve(series.run, points, f"{score_text(series.metric, newest.value)}, {why}", True)
    label = f"best {score_text(series.metric, best.value)} at step {step_text(best.step)}"
    return Curve(series.run, points, label, False, None if best.step is None else place(best.step, best.value))


def _loss_curve(run: RunRecord, number: int, letter: str, points: Sequence[tuple[int, float]]) -> Curve:
    """A loss, its neighbours averaged to `MOST_POINTS`; `letter`: whose it is, before its newest value."""
    images = np.array([run.images(step) for step, _ in points], float)
    values = np.array([value for _, value in points])
    parts = min(len(points), MOST_POINTS)
    means = zip(np.array_split(images, parts), np.array_split(values, parts), strict=True)
    return Curve(number, tuple((float(x.mean()), float(y.mean())) for x, y in means), f"{letter} {values[-1]:.3f}")

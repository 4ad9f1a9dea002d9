"""Scores of several runs, put together where they were measured alike and kept apart where they were not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sagan.comparison.runs import RunRecord, Score
from sagan.evaluation.metric_names import DIRECTION, PARAMETERS_OF
from sagan.evaluation.protocol import NOT_COMPARED, protocol_differences


@dataclass(frozen=True)
class Series:
    """What one run scored in one metric under one protocol.

    Attributes:
        run: its place in `Comparison.runs`.
        group: the protocol's place in `Comparison.groups`; None where no protocol is known: comparable with nothing.
        points: in the order of their steps, one a step; those without a step come first.
    """

    run: int
    metric: str
    group: int | None
    points: tuple[Score, ...]

    @property
    def newest(self) -> Score:
        return self.points[-1]

    @property
    def best(self) -> Score | None:
        """The best of the points, the earliest of equal ones; None where they cannot be compared with each other."""
        if self.group is None:
            return None
        return max(self.points, key=lambda point: DIRECTION[self.metric] * point.value)


@dataclass(frozen=True)
class Comparison:
    """Runs and their scores. `groups`: the protocols, each the fields that decide the scores measured by it."""

    runs: tuple[RunRecord, ...]
    groups: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]

    def metrics(self) -> list[str]:
        """The metrics that some run has, in the order of `DIRECTION`."""
        return [metric for metric in DIRECTION if any(s.metric == metric for s in self.series)]

    def of(self, metric: str, run: int | None = None) -> list[Series]:
        """The series of a metric, of all runs or of one; those with the most points first."""
        found = [s for s in self.series if s.metric == metric and run in (None, s.run)]
        return sorted(found, key=lambda s: (s.group is None, -len(s.points)))

    def shared(self, metric: str) -> list[int]:
        """The groups that get a column: those of two runs or more, or else the first; of a single run, all.

        In the order of how many runs and points they have. [] where no protocol is known.
        """
        runs, points = dict[int, int](), dict[int, int]()
        for series in self.series:
            if series.metric == metric and series.group is not None:
                runs[series.group] = runs.get(series.group, 0) + 1
                points[series.group] = points.get(series.group, 0) + len(series.points)
        order = sorted(runs, key=lambda group: (-runs[group], -points[group], group))
        if len(self.runs) == 1:
            return order
        return [group for group in order if runs[group] > 1] or order[:1]

    def leaders(self, metric: str, group: int) -> set[int]:
        """The runs with the best score of a group; none where all are equal, or there is one, which leads nobody."""
        best = {s.run: s.best.value for s in self.series if s.metric == metric and s.group == group and s.best}
        if len(set(best.values())) < 2:
            return set()
        top = max(best.values(), key=lambda value: DIRECTION[metric] * value)
        return {run for run, value in best.items() if value == top}


def compare(runs: Sequence[RunRecord], only: str | None = None) -> Comparison:
    """The scores of `runs` by metric and protocol; `only`: of one metric alone."""
    groups: list[dict[str, Any]] = []
    points: dict[tuple[int, str, int | None], dict[int | None, Score]] = {}
    for place, run in enumerate(runs):
        for score in run.scores:
            if only in (None, score.metric):
                key = place, score.metric, _group_of(score, groups)
                points.setdefault(key, {})[score.step] = score  # measured again at the same step: the later one
    series = tuple(Series(*key, points=_in_order(found.values())) for key, found in points.items())
    return Comparison(tuple(runs), tuple(groups), series)


def deciding_fields(metric: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """The fields of a protocol that decide a score of this metric: without parameters of others, seeds and versions."""
    return {
        name: value
        for name, value in protocol.items()
        if value is not None and name not in NOT_COMPARED and metric in PARAMETERS_OF.get(name, (metric,))
    }


def _group_of(score: Score, groups: list[dict[str, Any]]) -> int | None:
    """The number of the score's protocol among `groups`, to which it is added when it is new."""
    if score.protocol is None:
        return None
    mine = deciding_fields(score.metric, score.protocol)
    for number, group in enumerate(groups):
        if not protocol_differences(mine, group):
            return number
    groups.append(mine)
    return len(groups) - 1


def _in_order(scores: Iterable[Score]) -> tuple[Score, ...]:
    return tuple(sorted(scores, key=lambda score: -1 if score.step is None else score.step))

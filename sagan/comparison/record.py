"""The comparison as plain values, for JSON."""

from typing import Any

from sagan.comparison.runs import differing_settings
from sagan.comparison.scores import Comparison, Series


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """`runs` with their scores by metric, and `protocol_groups`: equal numbers may be compared, others not.

    A score's `protocol_group` and `best` are null where its protocol is not known. What a run scored in the same
    metric under other protocols stands under `others`.
    """
    settings = differing_settings(comparison.runs)
    return {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "step": run.step,
                "images": run.images(run.step),
                "settings": {name: values[number] for name, values in settings.items()},
                "scores": _scores(comparison, number),
            }
            for number, run in enumerate(comparison.runs)
        ],
        "protocol_groups": [
            {
                "group": number,
                "metrics": [m for m in comparison.metrics() if any(s.group == number for s in comparison.of(m))],
                "protocol": protocol,
            }
            for number, protocol in enumerate(comparison.groups)
        ],
    }


def _scores(comparison: Comparison, run: int) -> dict[str, dict[str, Any]]:
    scores = {}
    for metric in comparison.metrics():
        shared = comparison.shared(metric)
        order = [*shared, *(s.group for s in comparison.of(metric, run))]
        series = sorted(comparison.of(metric, run), key=lambda s: order.index(s.group))
        if series:
            first, *others = map(_series, series)
            scores[metric] = first | ({"others": others} if others else {})
    return scores


def _series(series: Series) -> dict[str, Any]:
    newest, best = series.newest, series.best
    return {
        "newest": newest.value,
        "newest_step": newest.step,
        "best": None if best is None else best.value,
        "best_step": None if best is None else best.step,
        "protocol_group": series.group,
        **({"warnings": list(newest.warnings)} if newest.warnings else {}),
    }

"""The metrics by name and what each needs. Imports no torch."""

import difflib
from collections.abc import Sequence

from sagan.errors import UserError

MANIFOLD = ("precision", "recall", "density", "coverage")
ON_FEATURES = ("fid", "kid", "is", *MANIFOLD, "intra_fid")
ON_EMBEDDINGS = ("lpips_diversity", "nearest")
METRICS = (*ON_FEATURES, *ON_EMBEDDINGS, "coherence")
COMPARED = ("fid", "kid", *MANIFOLD, "intra_fid", "nearest")  # with a reference
OF_IMAGES = tuple(name for name in COMPARED if name != "fid")  # for which statistics of the reference are not enough

LEAST = {"is": 10, **dict.fromkeys(MANIFOLD, 6)}  # images: a part each, and more than the k of a neighbourhood


def parse_metrics(text: str) -> tuple[str, ...]:
    """ "fid,kid" -> ("fid", "kid"), as `check_names` does."""
    return check_names([part.strip() for part in text.split(",")], "--metrics")


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names, when each is a metric (else UserError with the nearest one) and none is given twice."""
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}"
            raise UserError(f"{where}: unknown metric {name!r}; {hint}")
        if list(names).count(name) > 1:
            raise UserError(f"{where}: {name} is given twice")
    return tuple(names)


def check_count(metric: str, count: int, name: str) -> None:
    """UserError for fewer images than a metric is defined on; `name`: of the set."""
    least = LEAST.get(metric, 2)
    if count < least:
        raise UserError(f"{metric}: needs at least {least} images, {name} has {count}")

"""The metrics. A new metric is one entry of METRICS: command, JSON, tables and training find it there.

Imports no torch: a metric imports what it needs when it is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from sagan.utils.errors import UserError, suggestion

if TYPE_CHECKING:
    import numpy as np

    from sagan.evaluation.extractors import Backbone
    from sagan.evaluation.features import Extraction, ImageSet, Reference
    from sagan.evaluation.lpips import Perceptual

T = TypeVar("T")
MANIFOLD = ("precision", "recall", "density", "coverage")
KID_SUBSET = 1000
NEAREST_SAMPLES, NEIGHBORS = 16, 6


def present(value: T | None) -> T:
    """`value`, which the caller knows not to be None."""
    assert value is not None
    return value


@dataclass(frozen=True, eq=False)
class Networks:
    """Feature extractors; None where no metric needs one. `manifold`: a second backbone for precision and recall."""

    backbone: "Backbone | None" = None
    manifold: "Backbone | None" = None
    perceptual: "Perceptual | None" = None


@dataclass(frozen=True, eq=False)
class Computed:
    """`values` by name; `per_class`: FID of each class; `grid`: samples beside their nearest reference images."""

    values: dict[str, float]
    per_class: dict[int, float] = field(default_factory=dict)
    grid: "np.ndarray | None" = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of a metric. `generated`, `real`: features of samples and reference, on the first process.

    `stop`: see `extract`.
    """

    samples: "ImageSet"
    reference: "Reference | None"
    networks: Networks
    batch_size: int
    generated: "Extraction | None" = None
    real: "Extraction | None" = None
    stop: Callable[[], bool] | None = None

    @property
    def features(self) -> "tuple[np.ndarray, np.ndarray]":
        """Of samples (N, D) and reference (M, D)."""
        return present(present(self.generated).features), present(present(self.real).features)

    @property
    def reference_images(self) -> "ImageSet":
        return present(present(self.reference).images)

    @cached_property
    def manifold(self) -> dict[str, float]:
        """Precision, recall, density and coverage, which share their distances."""
        from sagan.evaluation.feature_metrics import manifold

        return manifold(*self.features, device=present(self.networks.backbone).device)._asdict()


@dataclass(frozen=True)
class Metric:
    """A metric of `--metrics` and `evaluate.metrics`.

    Attributes:
        direction: +1 if higher is better, -1 if lower, 0 if it does not rank generators.
        needs: "logits", "statistics" (mean and covariance) or "features" of the backbone, "lpips", or only images.
        compute: the scores. Metrics on the backbone are computed by the first process only, others by every process.
        compares: whether it needs a reference. Statistics of the reference are enough for "statistics" only.
        least: minimum number of images in each set.
        decimals: in tables.
        protocol: fields of the protocol with its parameters.
        parts: directions of its other scores that rank generators.
    """

    name: str
    direction: Literal[-1, 0, 1]
    needs: Literal["logits", "statistics", "features", "lpips", "images"]
    compute: Callable[[Inputs], Computed]
    compares: bool = False
    least: int = 2
    decimals: int = 3
    protocol: dict[str, Callable[[Inputs], str]] = field(default_factory=dict)
    parts: dict[str, Literal[-1, 1]] = field(default_factory=dict)

    @property
    def on_features(self) -> bool:
        return self.needs in ("logits", "statistics", "features")

    @property
    def directions(self) -> dict[str, int]:
        """Directions of the scores that rank generators."""
        return ({self.name: self.direction} if self.direction else {}) | self.parts

    @property
    def protocol_fields(self) -> tuple[str, ...]:
        """Fields of the protocol that affect this metric, but not all metrics."""
        backbone, lpips = ("backbone", "backbone_sha256", "backbone_input"), ("lpips", "lpips_sha256")
        return (*(backbone if self.on_features else lpips if self.needs == "lpips" else ()), *self.protocol)


def _fid(inputs: Inputs) -> Computed:
    from sagan.evaluation.fid import frechet_distance

    return Computed({"fid": frechet_distance(present(inputs.generated).statistics, present(inputs.real).statistics)})


def _kid(inputs: Inputs) -> Computed:
    from sagan.evaluation.feature_metrics import kid

    return Computed(dict(zip(("kid", "kid_std"), kid(*inputs.features, subset_size=KID_SUBSET), strict=True)))


def _kid_parameters(inputs: Inputs) -> str:
    size = min(inputs.samples.count, inputs.reference_images.count, KID_SUBSET)
    return f"100 subsets of {size}, (x·y/D + 1)^3, subsets from seed 2020"


def _inception_score(inputs: Inputs) -> Computed:
    from sagan.evaluation.feature_metrics import inception_score

    logits = present(present(inputs.generated).logits)
    return Computed(dict(zip(("is", "is_std"), inception_score(logits), strict=True)))


def _manifold(name: str) -> Metric:
    return Metric(
        name, +1, "features", lambda inputs: Computed({name: inputs.manifold[name]}), compares=True, least=6,
        protocol={"manifold": _manifold_parameters},
    )  # fmt: skip


def _manifold_parameters(inputs: Inputs) -> str:
    second = inputs.networks.manifold
    also = "" if second is None else f"; also on {second.name} {second.sha256}"
    return f"precision, recall: k = 3; density, coverage: k = 5{also}"


def _intra_fid(inputs: Inputs) -> Computed:
    from sagan.evaluation.fid import intra_fid

    features, real_features = inputs.features
    labels, real_labels = present(inputs.samples.labels), present(inputs.reference_images.labels)
    mean, per_class = intra_fid(features, labels, real_features, real_labels)
    return Computed({"intra_fid": mean}, per_class)


def _lpips_diversity(inputs: Inputs) -> Computed:
    from sagan.evaluation.lpips import lpips_diversity

    return Computed(lpips_diversity(inputs.samples, present(inputs.networks.perceptual), inputs.batch_size))


def _nearest(inputs: Inputs) -> Computed:
    import numpy as np

    from sagan.evaluation.lpips import embeddings, nearest, nearest_grid
    from sagan.utils.system import rank_and_count

    if rank_and_count()[0] > 0:
        return Computed({})
    reference, perceptual = inputs.reference_images, present(inputs.networks.perceptual)
    first = inputs.samples.read(np.arange(min(NEAREST_SAMPLES, inputs.samples.count)))
    others = (embedded for _, embedded in embeddings(reference, perceptual, inputs.batch_size))
    found = nearest(perceptual.embed(first), others, min(NEIGHBORS, reference.count))
    neighbors = np.stack([reference.read(row).cpu().numpy() for row in found.indices])
    grid = nearest_grid(first.cpu().numpy(), neighbors, found.distances, f"nearest of {reference.name}, LPIPS")
    return Computed({"nearest": float(np.median(found.distances[:, 0]))}, grid=grid)


def _coherence(inputs: Inputs) -> Computed:
    from sagan.data.shapes import ONE_PAIR, variant_of
    from sagan.evaluation.coherence import coherence
    from sagan.utils.system import gather_in_turn, rank_and_count

    rank, processes = rank_and_count()
    batches = inputs.samples.batches(inputs.batch_size)[rank::processes]
    images = gather_in_turn([inputs.samples.read(indices).cpu().numpy() for indices in batches])
    variant = variant_of(inputs.samples.class_names) or ONE_PAIR
    return Computed({} if images is None else coherence(images, inputs.samples.labels, variant).to_dict())


METRICS = {
    metric.name: metric
    for metric in (
        Metric("fid", -1, "statistics", _fid, compares=True, decimals=2),
        Metric("kid", -1, "features", _kid, compares=True, decimals=5, protocol={"kid": _kid_parameters}),
        Metric(
            "is", +1, "logits", _inception_score, least=10, decimals=2,
            protocol={"inception_score": lambda inputs: "10 splits, shuffled by seed 2020"},
        ),
        *map(_manifold, MANIFOLD),
        Metric("intra_fid", -1, "features", _intra_fid, compares=True, decimals=2),
        # Higher is better only among plausible images: noise is the most diverse. It detects a collapsed generator
        # and says nothing about quality, so read it beside FID or precision.
        Metric("lpips_diversity", +1, "lpips", _lpips_diversity),
        Metric("nearest", 0, "lpips", _nearest, compares=True),
        Metric(
            "coherence", +1, "images", _coherence,
            parts={"two_objects": +1, "four_objects": +1, "hue_agreement": +1, "shape_agreement": +1},
        ),
    )
}  # fmt: skip

# The direction of every score that ranks generators, in the order of tables.
DIRECTION = {score: sign for metric in METRICS.values() for score, sign in metric.directions.items()}


def decides(field: str, score: str) -> bool:
    """Whether a field of the protocol affects a score: yes, unless it only belongs to other metrics."""
    owners = [metric for metric in METRICS.values() if field in metric.protocol_fields]
    return not owners or any(score in metric.directions for metric in owners)


def score_decimals(score: str) -> int:
    """Decimals of a score in tables."""
    return METRICS[score].decimals if score in METRICS else 3


def parse_metrics(text: str) -> tuple[str, ...]:
    """ "fid,kid" -> ("fid", "kid"), checked by `check_names`."""
    return check_names([part.strip() for part in text.split(",")], "--metrics")


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names. UserError for an unknown metric (suggesting the closest one) or a repeated one."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"{where}: unknown metric {name!r}; {suggestion(name, METRICS)}")
        if list(names).count(name) > 1:
            raise UserError(f"{where}: {name} is given twice")
    return tuple(names)


def check_count(name: str, count: int, images: str) -> None:
    """UserError if a set has too few images for a metric; `images`: name of the set."""
    if count < METRICS[name].least:
        raise UserError(f"{name}: needs at least {METRICS[name].least} images, {images} has {count}")

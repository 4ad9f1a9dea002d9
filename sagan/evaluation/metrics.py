"""All metrics of one set of samples. Every process calls `measure` and shares the work; the first gets the scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sagan.errors import UserError
from sagan.evaluation.backbones import Backbone
from sagan.evaluation.choices import COMPARED, OF_IMAGES, ON_FEATURES, check_count
from sagan.evaluation.image_set import ImageSet
from sagan.evaluation.passes import coherence_pass, diversity_pass, feature_pass, manifold_pass, nearest_pass
from sagan.evaluation.perceptual import Perceptual
from sagan.evaluation.reference import Reference

KID_SUBSET = 1000
ENOUGH = 10_000  # samples from which FID is compared in the literature


@dataclass(frozen=True, eq=False)
class Networks:
    """What measures; None where no metric asks for it. `manifold`: a second backbone for precision and recall."""

    backbone: Backbone | None = None
    manifold: Backbone | None = None
    perceptual: Perceptual | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """`values` by name; `per_class`: FID of each class; `sheet`: samples beside their nearest reference images."""

    values: dict[str, float]
    per_class: dict[int, float] = field(default_factory=dict)
    sheet: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def check_metrics(metrics: Sequence[str], samples: ImageSet, reference: Reference | None) -> None:
    """UserError for a metric that these sets cannot have."""
    for name in metrics:
        check_count(name, samples.count, samples.name)
        if name not in COMPARED:
            continue
        if reference is None:
            raise UserError(f"{name}: compares with real images; name them with --reference")
        if name in OF_IMAGES and reference.images is None:
            raise UserError(f"{name}: needs images, {reference.name} holds statistics only, which is enough for fid")
        if reference.images is not None:
            check_count(name, reference.images.count, reference.name)
    if "intra_fid" in metrics:
        _check_classes(samples, _images(reference))


def _check_classes(samples: ImageSet, reference: ImageSet) -> None:
    counts = []
    for images in (samples, reference):
        if images.labels is None:
            raise UserError(f"intra_fid: a FID of each class needs labels, {images.name} has none")
        counts.append(
            dict(zip(*(found.tolist() for found in np.unique(images.labels, return_counts=True)), strict=True))
        )
    for images, own, other in ((samples, *counts), (reference, *reversed(counts))):
        if missing := sorted(other.keys() - own.keys()):
            raise UserError(f"intra_fid: {images.name} has no image of class {missing[0]}; both sets need every class")
        if lone := [label for label, count in own.items() if count < 2]:
            raise UserError(f"intra_fid: {images.name} has one image of class {lone[0]}; a class needs at least 2")


def measure(
    samples: ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    networks: Networks,
    batch_size: int,
    store: Path | None = None,
) -> Scores | None:
    """The scores of `samples`; None off the first process. `store`: see `extract`; removed at the end."""
    check_metrics(metrics, samples, reference)
    values: dict[str, float] = {}
    per_class: dict[int, float] = {}
    sheet = None
    on_features = [name for name in metrics if name in ON_FEATURES]
    if on_features:
        assert networks.backbone is not None
        found = feature_pass(samples, reference, on_features, networks.backbone, batch_size, store)
        values |= found.values
        per_class = found.per_class
    if networks.manifold is not None:
        values |= manifold_pass(samples, reference, networks.manifold, batch_size)
    if "lpips_diversity" in metrics:
        assert networks.perceptual is not None
        values |= diversity_pass(samples, networks.perceptual, batch_size)
    if "nearest" in metrics:
        assert networks.perceptual is not None
        nearest, sheet = nearest_pass(samples, _images(reference), networks.perceptual, batch_size)
        values |= nearest
    if "coherence" in metrics:
        values |= coherence_pass(samples, batch_size)
    if not values:
        return None
    return Scores(values, per_class, sheet, tuple(_warnings(samples, reference, metrics, networks)))


def _warnings(samples: ImageSet, reference: Reference | None, metrics: Sequence[str], networks: Networks) -> list[str]:
    """What makes these scores less than they seem."""
    said = []
    dimension = networks.backbone.dimension if networks.backbone is not None else 0
    if "fid" in metrics and samples.count <= dimension:
        said.append(f"{samples.count} samples for {dimension} features: their covariance is singular, FID is biased")
    if any(name in metrics for name in ("fid", "kid", "is")) and samples.count < ENOUGH:
        said.append(f"{samples.count} samples: scores in the literature use {ENOUGH} or more, FID grows with fewer")
    held = 0 if reference is None else _count(reference)
    if 0 < held < samples.count:
        said.append(f"the reference has {held} images, fewer than the {samples.count} samples")
    if "kid" in metrics and (size := min(samples.count, held)) < KID_SUBSET:
        said.append(f"kid: subsets of {size} images, {KID_SUBSET} are usual")
    if samples.lossy:
        said.append(f"{samples.name}: stored with loss (JPEG or WebP), which changes FID")
    if reference is not None and reference.images is not None and reference.images.lossy:
        said.append(f"{reference.name}: the reference is stored with loss (JPEG or WebP)")
    if "intra_fid" in metrics and samples.labels is not None:
        smallest = int(np.bincount(samples.labels)[np.unique(samples.labels)].min())
        if smallest <= dimension:
            said.append(f"intra_fid: a class has {smallest} samples for {dimension} features, its FID is biased")
    return said


def _count(reference: Reference) -> int:
    if reference.images is not None:
        return reference.images.count
    return reference.statistics.count if reference.statistics is not None else 0


def _images(reference: Reference | None) -> ImageSet:
    assert reference is not None
    assert reference.images is not None
    return reference.images

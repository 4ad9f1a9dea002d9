"""The passes over samples and reference that metrics need: features, LPIPS embeddings, pixels.

Every process calls them; off the first one they give no values.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sagan.evaluation.backbones import Backbone
from sagan.evaluation.coherence import coherence
from sagan.evaluation.extraction import Extraction, extract
from sagan.evaluation.feature_metrics import Manifold, inception_score, kid, manifold
from sagan.evaluation.image_set import ImageSet
from sagan.evaluation.intra import class_statistics, intra_fid
from sagan.evaluation.nearest import nearest, nearest_sheet
from sagan.evaluation.perceptual import DiversitySums, Perceptual
from sagan.evaluation.processes import gather_in_turn, rank_and_count
from sagan.evaluation.reference import Reference, reference_features
from sagan.evaluation.statistics import frechet_distance
from sagan.progress import Progress

NEAREST_SAMPLES, NEIGHBOURS = 16, 6


class FeatureScores(NamedTuple):
    """Values by name, and the FID of each class."""

    values: dict[str, float]
    per_class: dict[int, float]


def feature_pass(
    samples: ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    backbone: Backbone,
    batch_size: int,
    store: Path | None,
) -> FeatureScores:
    """fid, kid, is, precision, recall, density, coverage, intra_fid: those of `metrics`."""
    whole = any(name not in ("fid", "is") for name in metrics)
    mine = extract(
        samples, backbone, batch_size, features=whole, logits="is" in metrics, store=store,
        description=f"features of {samples.name}",
    )  # fmt: skip
    theirs = None if reference is None else reference_features(reference, backbone, batch_size, whole)
    if rank_and_count()[0] > 0:
        return FeatureScores({}, {})
    if store is not None:
        shutil.rmtree(store, ignore_errors=True)
    values: dict[str, float] = {}
    per_class: dict[int, float] = {}
    if "is" in metrics:
        assert mine.logits is not None
        values["is"], values["is_std"] = inception_score(mine.logits)
    if theirs is not None:
        if "fid" in metrics:
            values["fid"] = frechet_distance(mine.statistics, theirs.statistics, (samples.name, _name(reference)))
        if "kid" in metrics:
            values["kid"], values["kid_std"] = kid(*_arrays(mine, theirs))
        if chosen := [name for name in Manifold._fields if name in metrics]:
            found = manifold(*_arrays(mine, theirs), device=backbone.device)._asdict()
            values |= {name: found[name] for name in chosen}
        if "intra_fid" in metrics:
            values["intra_fid"], per_class = _intra(samples, reference, mine, theirs)
    return FeatureScores(values, per_class)


def manifold_pass(
    samples: ImageSet, reference: Reference | None, backbone: Backbone, batch_size: int
) -> dict[str, float]:
    """Precision, recall, density and coverage on the features of a second backbone, under its name."""
    assert reference is not None
    mine = extract(samples, backbone, batch_size, features=True, description=f"{backbone.name} of {samples.name}")
    theirs = reference_features(reference, backbone, batch_size, features=True)
    if theirs is None:
        return {}
    found = manifold(*_arrays(mine, theirs), device=backbone.device)._asdict()
    return {f"{name}_{backbone.name}": value for name, value in found.items()}


def diversity_pass(samples: ImageSet, perceptual: Perceptual, batch_size: int) -> dict[str, float]:
    """Mean LPIPS between any two samples, and between any two of one class."""
    rank, processes = rank_and_count()
    first = perceptual.embed(samples.read(np.arange(1)))
    sums = DiversitySums(first.shape[1], first.device)
    with Progress(samples.count, f"LPIPS of {samples.name}", quiet=rank > 0) as progress:
        for indices in _batches(samples.count, batch_size)[rank::processes]:
            labels = None if samples.labels is None else samples.labels[indices]
            sums.update(perceptual.embed(samples.read(indices)), labels)
            progress.advance(len(indices) * processes)
    sums.reduce()
    if rank > 0:
        return {}
    found = sums.result()
    within = {} if found.within is None else {"lpips_diversity_within": found.within}
    return {"lpips_diversity": found.overall, **within}


def nearest_pass(
    samples: ImageSet, reference: ImageSet, perceptual: Perceptual, batch_size: int
) -> tuple[dict[str, float], np.ndarray | None]:
    """Median LPIPS of the first samples to the nearest reference image, and a sheet of both."""
    if rank_and_count()[0] > 0:
        return {}, None
    first = samples.read(np.arange(min(NEAREST_SAMPLES, samples.count)))
    found = nearest(
        perceptual.embed(first), _embeddings(reference, perceptual, batch_size), min(NEIGHBOURS, reference.count)
    )
    neighbours = np.stack([reference.read(row).cpu().numpy() for row in found.indices])
    sheet = nearest_sheet(first.cpu().numpy(), neighbours, found.distances, f"nearest of {reference.name}, LPIPS")
    return {"nearest": float(np.median(found.distances[:, 0]))}, sheet


def coherence_pass(samples: ImageSet, batch_size: int) -> dict[str, float]:
    """The figures of `coherence` on the embedded data set."""
    rank, processes = rank_and_count()
    mine = [samples.read(indices).cpu().numpy() for indices in _batches(samples.count, batch_size)[rank::processes]]
    images = gather_in_turn(mine)
    return {} if images is None else coherence(images, samples.labels).to_dict()


def _name(reference: Reference | None) -> str:
    return "the reference" if reference is None else reference.name


def _intra(
    samples: ImageSet, reference: Reference | None, mine: Extraction, theirs: Extraction
) -> tuple[float, dict[int, float]]:
    assert samples.labels is not None
    assert reference is not None
    assert reference.images is not None
    assert reference.images.labels is not None
    features, others = _arrays(mine, theirs)
    return intra_fid(
        class_statistics(features, samples.labels, samples.name),
        class_statistics(others, reference.images.labels, reference.name),
    )


def _arrays(mine: Extraction, theirs: Extraction) -> tuple[np.ndarray, np.ndarray]:
    assert mine.features is not None
    assert theirs.features is not None
    return mine.features, theirs.features


def _batches(count: int, batch_size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _embeddings(images: ImageSet, perceptual: Perceptual, batch_size: int) -> Iterator[Tensor]:
    with Progress(images.count, f"LPIPS of {images.name}") as progress:
        for indices in _batches(images.count, batch_size):
            yield perceptual.embed(images.read(indices))
            progress.advance(len(indices))

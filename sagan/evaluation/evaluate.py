"""Samples of a generator as an image set, the scores of an image set, and the protocol stored with them."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagan.evaluation.extractors import Backbone, load_backbone
from sagan.evaluation.features import ImageSet, Reference, extract, identity, reference_features
from sagan.evaluation.lpips import load_perceptual
from sagan.evaluation.registry import (
    KID_SUBSET,
    MANIFOLD,
    METRICS,
    Computed,
    Inputs,
    Metric,
    Networks,
    check_count,
    present,
)
from sagan.evaluation.result import Protocol, Scores, labels_by_frequency, versions
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint
from sagan.sampling.sampler import generate, latents
from sagan.utils.errors import UserError
from sagan.utils.system import rank_and_count

ENOUGH = 10_000  # samples in the literature's FIDs


def load_networks(
    metrics: Sequence[str],
    device: torch.device,
    backbone: str = "inception",
    backbone_weights: Path | None = None,
    lpips: str = "alex",
    lpips_weights: Path | None = None,
    vgg16_weights: Path | None = None,
) -> Networks:
    """Load the networks that the metrics need. UserError if weights are missing or wrong."""
    chosen = [METRICS[name] for name in metrics]
    on_features = any(metric.on_features for metric in chosen)
    on_vgg16 = vgg16_weights is not None and not set(metrics).isdisjoint(MANIFOLD)
    return Networks(
        load_backbone(backbone, backbone_weights, device, "is" in metrics) if on_features else None,
        load_backbone("vgg16", vgg16_weights, device) if on_vgg16 else None,
        load_perceptual(lpips, lpips_weights, device) if any(metric.needs == "lpips" for metric in chosen) else None,
    )


@dataclass(frozen=True)
class SampleSettings:
    """How a generator is sampled: seeds `first_seed` to first_seed + num - 1.

    `labels`: "reference" (its class frequencies) or "uniform". `weights` ("averaged", "raw") and `batch_norm`
    ("running", "standing") describe the generator.
    """

    num: int
    first_seed: int = 0
    labels: str = "reference"
    truncation: float | None = None
    weights: str = "averaged"
    batch_norm: str = "running"


def generated_images(
    generator: Generator, settings: SampleSettings, reference: Reference | None, name: str
) -> ImageSet:
    """The samples as an image set: image i has seed first_seed + i and label i, in whatever order images are read.

    `generator` is on its device, in eval mode. UserError if the reference has classes that the generator lacks.
    """
    labels = None
    if classes := generator.num_classes:
        known = _reference_labels(settings, reference)
        if known is not None and known.max() >= classes:
            raise UserError(
                f"the reference has {known.max() + 1} classes, the generator {classes}; use --labels uniform"
            )
        counts = np.ones(classes, np.int64) if known is None else np.bincount(known, minlength=classes)
        labels = labels_by_frequency(counts, settings.num)
    device = next(generator.parameters()).device

    def read(indices: np.ndarray) -> Tensor:
        z = latents((settings.first_seed + indices).tolist(), generator.z_dim, settings.truncation)
        chosen = None if labels is None else torch.from_numpy(labels[indices])
        return torch.cat(list(generate(generator, z, chosen, device, keep=True)))

    digest = hashlib.sha256(f"{fingerprint(generator)} {settings} {device.type}".encode())
    digest.update(b"" if labels is None else labels.tobytes())
    size = (generator.resolution, generator.resolution)
    return ImageSet(settings.num, size, read, digest.hexdigest(), name, labels, generator.class_names)


def _reference_labels(settings: SampleSettings, reference: Reference | None) -> np.ndarray | None:
    """The labels whose frequencies the samples follow; None for uniform ones."""
    if settings.labels != "reference" or reference is None or reference.images is None:
        return None
    return reference.images.labels


def evaluate(
    samples: ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    networks: Networks,
    batch_size: int,
    settings: SampleSettings | None = None,
    step: int | None = None,
    store: Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Scores | None:
    """Computed and protocol of `samples`; every process calls it, the first one gets the result.

    `settings`: how the samples were generated; None for images from files. `store`, `stop`: see `extract`; the
    store is removed at the end. UserError for a metric that is not defined on these sets.
    """
    chosen = [METRICS[name] for name in metrics]
    for metric in chosen:
        _check_metric(metric, samples, reference)
    inputs = Inputs(samples, reference, networks, batch_size, stop=stop)
    scores = _compute(sorted(chosen, key=_order), inputs, store)
    if rank_and_count()[0] > 0:
        return None
    names = samples.class_names
    return Scores(
        {name: value for score in scores for name, value in score.values.items()},
        _protocol(chosen, inputs, settings),
        per_class={names[k] if k < len(names) else str(k): v for one in scores for k, v in one.per_class.items()},
        warnings=tuple(_warnings(metrics, inputs)),
        step=step,
        grid=next((score.grid for score in scores if score.grid is not None), None),
    )


def _check_metric(metric: Metric, samples: ImageSet, reference: Reference | None) -> None:
    """UserError for a metric that is not defined on these sets."""
    check_count(metric.name, samples.count, samples.name)
    if not metric.compares:
        return
    if reference is None:
        raise UserError(f"{metric.name}: compares with real images; name them with --reference")
    if reference.images is not None:
        check_count(metric.name, reference.images.count, reference.name)
        if metric.name == "intra_fid":
            _check_classes(samples, reference.images)
    elif metric.needs != "statistics":
        raise UserError(f"{metric.name}: needs images; {reference.name} holds statistics, which only suffice for fid")


def _check_classes(samples: ImageSet, reference: ImageSet) -> None:
    """UserError unless both sets have at least two images of every class."""
    for images in (samples, reference):
        if images.labels is None:
            raise UserError(f"intra_fid: needs labels, {images.name} has none")
    both = np.concatenate([present(samples.labels), present(reference.labels)])
    for images in (samples, reference):
        counts = np.bincount(present(images.labels), minlength=both.max() + 1)
        for label in np.intersect1d(both, np.flatnonzero(counts < 2)):
            number = "one image" if counts[label] else "no image"
            raise UserError(f"intra_fid: {images.name} has {number} of class {label}; both sets need 2 of each class")


def _order(metric: Metric) -> tuple[int, int]:
    """Metrics on logits come first, then those on features, then the others."""
    return 0 if metric.needs == "logits" else 1 if metric.on_features else 2, list(METRICS).index(metric.name)


def _compute(metrics: Sequence[Metric], inputs: Inputs, store: Path | None) -> list[Computed]:
    networks, main, found = inputs.networks, rank_and_count()[0] == 0, []
    on_features = [metric for metric in metrics if metric.on_features]
    if on_features:
        needs = {metric.needs for metric in on_features}
        with_features = _extracted(inputs, present(networks.backbone), "features" in needs, "logits" in needs, store)
        if main:
            found += [metric.compute(with_features) for metric in on_features]
    if networks.manifold is not None:
        both = _extracted(inputs, networks.manifold, True)
        if main:
            values = {f"{name}_{networks.manifold.name}": value for name, value in both.manifold.items()}
            found.append(Computed(values))
    return found + [metric.compute(inputs) for metric in metrics if not metric.on_features]


def _extracted(
    inputs: Inputs, backbone: Backbone, features: bool, logits: bool = False, store: Path | None = None
) -> Inputs:
    """The inputs with the features of samples and reference, on this backbone."""
    samples, reference, batch_size = inputs.samples, inputs.reference, inputs.batch_size
    generated = extract(
        samples, backbone, batch_size, features=features, logits=logits, store=store,
        description=f"{backbone.name} features of {samples.name}", stop=inputs.stop,
    )  # fmt: skip
    real = None
    if reference is not None:
        real = reference_features(reference, backbone, batch_size, features, stop=inputs.stop)
    if store is not None and rank_and_count()[0] == 0:
        shutil.rmtree(store, ignore_errors=True)
    networks = replace(inputs.networks, backbone=backbone)
    return replace(inputs, networks=networks, generated=generated, real=real)


def _warnings(metrics: Sequence[str], inputs: Inputs) -> list[str]:
    """Caveats of these scores."""
    samples, reference, backbone = inputs.samples, inputs.reference, inputs.networks.backbone
    num, count = samples.count, 0 if reference is None else reference.count
    dimension = 0 if backbone is None else backbone.dimension
    warnings = []
    if "fid" in metrics and num <= dimension:
        warnings.append(f"{num} samples for {dimension} features: their covariance is singular, FID is biased")
    if not {"fid", "kid", "is"}.isdisjoint(metrics) and num < ENOUGH:
        warnings.append(f"{num} samples: scores in the literature use {ENOUGH} or more, FID grows with fewer")
    if 0 < count < num:
        warnings.append(f"the reference has {count} images, fewer than the {num} samples")
    if "kid" in metrics and (size := min(num, count)) < KID_SUBSET:
        warnings.append(f"kid: subsets of {size} images, {KID_SUBSET} are usual")
    if samples.lossy:
        warnings.append(f"{samples.name}: stored with loss (JPEG or WebP), which changes FID")
    if reference is not None and reference.images is not None and reference.images.lossy:
        warnings.append(f"{reference.name}: the reference is stored with loss (JPEG or WebP)")
    if "intra_fid" in metrics:
        smallest = np.unique(present(samples.labels), return_counts=True)[1].min()
        if smallest <= dimension:
            warnings.append(f"intra_fid: a class has {smallest} samples for {dimension} features, its FID is biased")
    return warnings


def _protocol(metrics: Sequence[Metric], inputs: Inputs, settings: SampleSettings | None) -> Protocol:
    samples, reference, networks = inputs.samples, inputs.reference, inputs.networks
    fields: dict[str, Any] = {"num": samples.count, "size": samples.size, "versions": versions()}
    if settings is None:
        fields |= {"images": "files", "lossy": samples.lossy, "labels": "as stored"}
    else:
        last = settings.first_seed + settings.num - 1
        fields |= {
            "images": "generated", "seeds": f"{settings.first_seed}-{last}", "weights": settings.weights,
            "batch_norm": settings.batch_norm, "truncation": settings.truncation,
            "labels": "uniform" if _reference_labels(settings, reference) is None else "reference",
        }  # fmt: skip
    if samples.labels is None:
        fields["labels"] = "none"
    if reference is not None:
        images = reference.images
        fields |= {
            "reference": reference.name, "reference_resize": reference.resize, "reference_count": reference.count,
            "reference_hash": reference.about.get("images") if images is None else images.key,
        }  # fmt: skip
    if networks.backbone is not None and any(metric.on_features for metric in metrics):
        fields |= identity(networks.backbone)
    if networks.perceptual is not None and any(metric.needs == "lpips" for metric in metrics):
        fields |= {"lpips": f"{networks.perceptual.name}, v0.1", "lpips_sha256": networks.perceptual.sha256}
    fields |= {name: describe(inputs) for metric in metrics for name, describe in metric.protocol.items()}
    return Protocol(**fields)

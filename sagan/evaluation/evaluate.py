"""Samples of a generator, by index; their scores; and the protocol stored with each score."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagan.evaluation.extractors import load_backbone
from sagan.evaluation.features import ImageSet, Reference, extract, identity, reference_features
from sagan.evaluation.lpips import load_perceptual
from sagan.evaluation.registry import MANIFOLD, METRICS, Inputs, Metric, Networks, Scores, check_count
from sagan.evaluation.result import EvaluationResult, Protocol, labels_by_frequency, versions
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint
from sagan.sampling.sampler import generate, latents
from sagan.utils.errors import UserError
from sagan.utils.system import rank_and_count

KID_SUBSET = 1000
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
    """The networks that the metrics need. UserError if weights are missing or wrong."""
    chosen = [METRICS[name] for name in metrics]
    on_features = any(metric.on_features for metric in chosen)
    on_vgg16 = vgg16_weights is not None and any(name in MANIFOLD for name in metrics)
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
) -> EvaluationResult | None:
    """Scores and protocol of `samples`; every process calls it, the first one gets the result.

    `settings`: how the samples were generated; None for images from files. `store`: see `extract`; it is removed at
    the end. UserError for a metric that is not defined on these sets.
    """
    chosen = [METRICS[name] for name in metrics]
    check_metrics(chosen, samples, reference)
    inputs = Inputs(samples, reference, networks, batch_size)
    scores = _compute(chosen, inputs, store)
    if rank_and_count()[0] > 0:
        return None
    names = samples.class_names
    return EvaluationResult(
        {name: value for score in scores for name, value in score.values.items()},
        _protocol(chosen, inputs, settings),
        per_class={names[k] if k < len(names) else str(k): v for one in scores for k, v in one.per_class.items()},
        warnings=tuple(_warnings(metrics, inputs)),
        step=step,
        grid=next((score.grid for score in scores if score.grid is not None), None),
    )


def check_metrics(metrics: Sequence[Metric], samples: ImageSet, reference: Reference | None) -> None:
    """UserError for a metric that is not defined on these sets."""
    for metric in metrics:
        check_count(metric.name, samples.count, samples.name)
        if not metric.compares:
            continue
        if reference is None:
            raise UserError(f"{metric.name}: compares with real images; name them with --reference")
        if reference.images is not None:
            check_count(metric.name, reference.images.count, reference.name)
        elif metric.needs != "statistics":
            raise UserError(
                f"{metric.name}: needs images; {reference.name} holds statistics, which only suffice for fid"
            )
        if metric.name == "intra_fid" and reference.images is not None:
            _check_classes(samples, reference.images)


def _check_classes(samples: ImageSet, reference: ImageSet) -> None:
    counts = []
    for images in (samples, reference):
        if images.labels is None:
            raise UserError(f"intra_fid: needs labels, {images.name} has none")
        counts.append(np.bincount(images.labels))
    length = max(map(len, counts))
    own, other = (np.pad(each, (0, length - len(each))) for each in counts)
    for images, counted in ((samples, own), (reference, other)):
        for label in np.flatnonzero((own + other > 0) & (counted < 2)):
            number = "one image" if counted[label] else "no image"
            raise UserError(f"intra_fid: {images.name} has {number} of class {label}; both sets need 2 of each class")


def _compute(metrics: Sequence[Metric], inputs: Inputs, store: Path | None) -> list[Scores]:
    """The scores of `metrics`: those on logits, then on features, then the others."""
    samples, reference, networks, batch_size = inputs.samples, inputs.reference, inputs.networks, inputs.batch_size
    on_features = sorted((metric for metric in metrics if metric.on_features), key=_place)
    found = []
    if on_features:
        assert networks.backbone is not None
        whole = any(metric.needs == "features" for metric in on_features)
        logits = any(metric.needs == "logits" for metric in on_features)
        generated = extract(
            samples, networks.backbone, batch_size, features=whole, logits=logits, store=store,
            description=f"features of {samples.name}",
        )  # fmt: skip
        real = None if reference is None else reference_features(reference, networks.backbone, batch_size, whole)
        if rank_and_count()[0] == 0:
            if store is not None:
                shutil.rmtree(store, ignore_errors=True)
            inputs = Inputs(samples, reference, networks, batch_size, generated, real)
            found += [metric.compute(inputs) for metric in on_features]
    if networks.manifold is not None:
        found.append(_second_manifold(inputs, networks.manifold))
    return found + [metric.compute(inputs) for metric in sorted(metrics, key=_place) if not metric.on_features]


def _place(metric: Metric) -> tuple[bool, int]:
    return metric.needs != "logits", list(METRICS).index(metric.name)


def _second_manifold(inputs: Inputs, backbone: Any) -> Scores:
    """Precision, recall, density and coverage on another backbone, under its name."""
    samples, reference = inputs.samples, inputs.reference
    assert reference is not None
    generated = extract(
        samples, backbone, inputs.batch_size, features=True, description=f"{backbone.name} of {samples.name}"
    )
    real = reference_features(reference, backbone, inputs.batch_size, features=True)
    if real is None:
        return Scores({})
    both = Inputs(samples, reference, Networks(backbone), inputs.batch_size, generated, real)
    return Scores({f"{name}_{backbone.name}": value for name, value in both.manifold.items()})


def _warnings(metrics: Sequence[str], inputs: Inputs) -> list[str]:
    """Caveats of these scores."""
    samples, reference = inputs.samples, inputs.reference
    warnings = []
    dimension = inputs.networks.backbone.dimension if inputs.networks.backbone is not None else 0
    if "fid" in metrics and samples.count <= dimension:
        warnings.append(
            f"{samples.count} samples for {dimension} features: their covariance is singular, FID is biased"
        )
    if not {"fid", "kid", "is"}.isdisjoint(metrics) and samples.count < ENOUGH:
        warnings.append(f"{samples.count} samples: scores in the literature use {ENOUGH} or more, FID grows with fewer")
    count = 0 if reference is None else reference.count
    if 0 < count < samples.count:
        warnings.append(f"the reference has {count} images, fewer than the {samples.count} samples")
    if "kid" in metrics and (size := min(samples.count, count)) < KID_SUBSET:
        warnings.append(f"kid: subsets of {size} images, {KID_SUBSET} are usual")
    if samples.lossy:
        warnings.append(f"{samples.name}: stored with loss (JPEG or WebP), which changes FID")
    if reference is not None and reference.images is not None and reference.images.lossy:
        warnings.append(f"{reference.name}: the reference is stored with loss (JPEG or WebP)")
    if "intra_fid" in metrics and samples.labels is not None:
        smallest = int(np.bincount(samples.labels)[np.unique(samples.labels)].min())
        if smallest <= dimension:
            warnings.append(f"intra_fid: a class has {smallest} samples for {dimension} features, its FID is biased")
    return warnings


def _protocol(metrics: Sequence[Metric], inputs: Inputs, settings: SampleSettings | None) -> Protocol:
    samples, reference, networks = inputs.samples, inputs.reference, inputs.networks
    fields: dict[str, Any] = {"num": samples.count, "size": samples.size, "versions": versions()}
    if settings is None:
        labels = "none" if samples.labels is None else "as stored"
        fields |= {"images": "files", "lossy": samples.lossy, "labels": labels}
    else:
        last = settings.first_seed + settings.num - 1
        followed = "uniform" if _reference_labels(settings, reference) is None else "reference"
        labels = "none" if samples.labels is None else followed
        fields |= {
            "images": "generated", "seeds": f"{settings.first_seed}-{last}", "labels": labels,
            "weights": settings.weights, "batch_norm": settings.batch_norm, "truncation": settings.truncation,
        }  # fmt: skip
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
    fields |= {name: tell(inputs) for metric in metrics for name, tell in metric.protocol.items()}
    return Protocol(**fields)

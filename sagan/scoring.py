"""From a generator to a score card: samples drawn by index, measured, and described."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagan.errors import UserError
from sagan.evaluation.backbones import load_backbone
from sagan.evaluation.card import Card
from sagan.evaluation.choices import MANIFOLD, ON_EMBEDDINGS, ON_FEATURES
from sagan.evaluation.feature_metrics import kid_subset_size
from sagan.evaluation.image_set import ImageSet
from sagan.evaluation.labels import labels_by_frequency
from sagan.evaluation.metrics import Networks, measure
from sagan.evaluation.perceptual import load_perceptual
from sagan.evaluation.protocol import Protocol, versions
from sagan.evaluation.reference import Reference, identity
from sagan.networks import Generator
from sagan.sampling import generate, latents
from sagan.snapshot import fingerprint


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn from a generator: seeds `first_seed` to first_seed + num - 1.

    `labels`: "reference" (in its class frequencies) or "uniform". `weights` ("averaged", "raw") and `batch_norm`
    ("running", "standing") say what the generator is.
    """

    num: int
    first_seed: int = 0
    labels: str = "reference"
    truncation: float | None = None
    weights: str = "averaged"
    batch_norm: str = "running"


class Scored(NamedTuple):
    """A card, and samples beside their nearest reference images where that was asked for."""

    card: Card
    sheet: np.ndarray | None


def load_networks(
    metrics: Sequence[str],
    device: torch.device,
    backbone: str = "inception",
    backbone_weights: Path | None = None,
    lpips: str = "alex",
    lpips_weights: Path | None = None,
    vgg16_weights: Path | None = None,
) -> Networks:
    """The networks that the metrics need. UserError where weights are missing or wrong."""
    on_features = any(name in ON_FEATURES for name in metrics)
    on_manifolds = vgg16_weights is not None and any(name in MANIFOLD for name in metrics)
    embedded = any(name in ON_EMBEDDINGS for name in metrics)
    return Networks(
        load_backbone(backbone, backbone_weights, device, "is" in metrics) if on_features else None,
        load_backbone("vgg16", vgg16_weights, device) if on_manifolds else None,
        load_perceptual(lpips, lpips_weights, device) if embedded else None,
    )


def drawn_images(generator: Generator, drawing: Drawing, reference: Reference | None, name: str) -> ImageSet:
    """The samples as a set of images: image i comes from seed first_seed + i and label i, whenever it is read.

    `generator` stands on its device in eval mode.
    """
    labels = _labels(generator, drawing, reference)
    device = next(generator.parameters()).device

    def read(indices: np.ndarray) -> Tensor:
        z = latents((drawing.first_seed + indices).tolist(), generator.z_dim, drawing.truncation)
        chosen = None if labels is None else torch.from_numpy(labels[indices])
        return torch.cat(list(generate(generator, z, chosen, device, keep=True)))

    digest = hashlib.sha256(f"{fingerprint(generator)} {drawing} {device.type}".encode())
    digest.update(b"" if labels is None else labels.tobytes())
    size = (generator.resolution, generator.resolution)
    return ImageSet(drawing.num, size, read, digest.hexdigest(), name, labels, generator.class_names)


def score(
    samples: ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    networks: Networks,
    batch_size: int,
    drawing: Drawing | None = None,
    store: Path | None = None,
) -> Scored | None:
    """Measure samples and say how; every process calls it, the first one gets the card. `drawing`: None for files."""
    found = measure(samples, reference, metrics, networks, batch_size, store)
    if found is None:
        return None
    names = samples.class_names
    per_class = {names[k] if k < len(names) else str(k): value for k, value in found.per_class.items()}
    protocol = _protocol(samples, reference, metrics, networks, drawing)
    return Scored(Card(found.values, protocol, per_class=per_class, warnings=found.warnings), found.sheet)


def _labels(generator: Generator, drawing: Drawing, reference: Reference | None) -> np.ndarray | None:
    """UserError when the reference has classes that the generator lacks."""
    classes = generator.num_classes
    if not classes:
        return None
    known = _reference_labels(drawing, reference)
    if known is None:
        return labels_by_frequency(np.ones(classes, np.int64), drawing.num)
    if known.max() >= classes:
        raise UserError(
            f"the reference has {known.max() + 1} classes, the generator {classes}; --labels uniform draws them alike"
        )
    return labels_by_frequency(np.bincount(known, minlength=classes), drawing.num)


def _reference_labels(drawing: Drawing, reference: Reference | None) -> np.ndarray | None:
    """The labels whose frequencies the samples follow; None where they are uniform."""
    if drawing.labels != "reference" or reference is None or reference.images is None:
        return None
    return reference.images.labels


def _protocol(
    samples: ImageSet,
    reference: Reference | None,
    metrics: Sequence[str],
    networks: Networks,
    drawing: Drawing | None,
) -> Protocol:
    fields: dict[str, Any] = {"num": samples.count, "size": samples.size, "versions": versions()}
    if drawing is None:
        labels = "none" if samples.labels is None else "as stored"
        fields |= {"images": "files", "lossy": samples.lossy, "labels": labels}
    else:
        last = drawing.first_seed + drawing.num - 1
        followed = "uniform" if _reference_labels(drawing, reference) is None else "reference"
        labels = "none" if samples.labels is None else followed
        fields |= {
            "images": "generated", "seeds": f"{drawing.first_seed}-{last}", "labels": labels,
            "weights": drawing.weights, "batch_norm": drawing.batch_norm, "truncation": drawing.truncation,
        }  # fmt: skip
    if reference is not None:
        images, about = reference.images, reference.about
        fields |= {"reference": reference.name, "reference_resize": reference.resize}
        fields["reference_hash"] = about.get("images") if images is None else images.key
        statistics = reference.statistics
        fields["reference_count"] = images.count if images is not None else statistics.count if statistics else 0
    return Protocol(**fields, **_of_networks(samples, reference, metrics, networks))


def _of_networks(
    samples: ImageSet, reference: Reference | None, metrics: Sequence[str], networks: Networks
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if networks.backbone is not None and any(name in ON_FEATURES for name in metrics):
        fields |= identity(networks.backbone)
    if "kid" in metrics and reference is not None and reference.images is not None:
        size = kid_subset_size(samples.count, reference.images.count)
        fields["kid"] = f"100 subsets of {size}, (x·y/D + 1)^3, subsets from seed 2020"
    if "is" in metrics:
        fields["inception_score"] = "10 splits, shuffled by seed 2020"
    if any(name in metrics for name in MANIFOLD) or networks.manifold is not None:
        second = "" if networks.manifold is None else f"; also on {networks.manifold.name} {networks.manifold.sha256}"
        fields["manifold"] = f"precision, recall: k = 3; density, coverage: k = 5{second}"
    if networks.perceptual is not None and any(name in ON_EMBEDDINGS for name in metrics):
        fields |= {"lpips": f"{networks.perceptual.name}, v0.1", "lpips_sha256": networks.perceptual.sha256}
    return fields

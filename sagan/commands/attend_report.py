"""What `sagan attend` says of attention in words and numbers."""

from dataclasses import asdict
from typing import Any

import numpy as np

from sagan.evaluation.coherence import clear_pairs, coherence
from sagan.evaluation.segmentation import find_objects
from sagan.inspection.ablation import ablate
from sagan.inspection.maps import Recording
from sagan.inspection.partner import object_mask, partner_mass
from sagan.networks import Generator
from sagan.sampling import default_labels, latents

COLUMNS = (
    "gamma", "entropy", "uniform_entropy", "distance", "uniform_distance", "far_mass", "uniform_far_mass",
    "variation", "uniform_variation", "untrained",
)  # fmt: skip
ABLATED = 256  # samples from which the change of coherence is measured


def partner_numbers(recording: Recording) -> dict[str, dict[str, float]]:
    """On `shapes`: how much attention of points on one object falls on the other."""
    which, objects = clear_pairs(find_objects(recording.images))
    resolution = recording.images.shape[1]
    masks = np.zeros((len(recording.images), 2, resolution, resolution), bool)
    for i, image in enumerate(which):
        for side, row in enumerate((2 * i, 2 * i + 1)):
            masks[image, side] = object_mask(objects.shape[row], objects.centre[row], objects.area[row], resolution)
    return {
        name: {**asdict(m), "ratio_to_chance": m.mass / m.chance} for name, m in partner_mass(recording, masks).items()
    }


def partner_sentence(name: str, numbers: dict[str, float]) -> str:
    """Attention to the partner, beside chance and beside what a map that is the same everywhere would give."""
    return (
        f"{name}: of the mass of {numbers['points']} points on an object {100 * numbers['mass']:.1f} % falls on "
        f"the other object (chance {100 * numbers['chance']:.1f} %, on their own {100 * numbers['own']:.1f} %)"
    )


def coherence_without(generator: Generator) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of `coherence` of the same samples with attention and without."""
    seeds = range(ABLATED)
    z, labels = latents(seeds, generator.z_dim), default_labels(seeds, generator.num_classes)
    found = ablate(generator, z, labels)
    numbers = None if labels is None else labels.numpy()
    return coherence(found.with_attention, numbers).to_dict(), coherence(found.without, numbers).to_dict()


def ablation_sentences(change: dict[str, Any]) -> list[str]:
    """What is lost without attention, in plain words."""
    said = [f"with every gamma at 0 the images change by {change['grey_levels']:.1f} of 255 grey levels"]
    if "lpips" in change:
        said[0] += f", LPIPS {change['lpips']:.3f}"
    if "without" in change:
        for name in ("coherence", "two_objects", "hue_agreement", "shape_agreement"):
            with_it, without = change["with"][name], change["without"][name]
            said.append(f"  {name.replace('_', ' ')}: {with_it:.3f} with attention, {without:.3f} without")
    return said


def table(health: dict[str, dict[str, float]]) -> str:
    """One line a map; `uniform` stands for what uniform attention would have."""
    rows = [["", *("uniform" if column.startswith("uniform") else column for column in COLUMNS)]]
    for name, numbers in health.items():
        rows.append([name, *(f"{numbers[column]:.3g}" if column in numbers else "-" for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )

"""`sagan attend`: what a generator attends to, as a figure, as arrays, and in numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sagan.errors import UserError
from sagan.files import make_folder
from sagan.resolutions import ATTENTION_RESOLUTION
from sagan.selections import parse_classes, parse_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from sagan.inspection.maps import Points, Recording
    from sagan.networks import Generator

RANDOM, GRID = 5, 9  # how many points `random` and `grid` are
MOST_POINTS, MOST_IMAGES = 32, 128  # beyond, no figure is readable
COLUMNS = (
    "gamma", "entropy", "uniform_entropy", "distance", "uniform_distance", "far_mass", "uniform_far_mass",
    "variation", "uniform_variation",
)  # fmt: skip


def attend_command(source: str, out: Path, seeds: str, classes: str | None, points: str, as_json: bool) -> None:
    """Write attention.png and attention.npz into `out`, and print whether attention does anything.

    `source`: a snapshot, a run or a Hub id. `classes`: every seed in each of them; None: seed mod num_classes.
    `points`: how many salient points, "random" or "grid". `as_json`: one object on stdout. UserError for anything that
    cannot be had, before `out` is touched; also for a generator without attention.
    """
    chosen = parse_seeds(seeds)
    _check_points(points)
    from sagan.data.shapes import CLASSES
    from sagan.images import save_png
    from sagan.inspection.figure import attention_figure
    from sagan.inspection.health import attention_health, describe
    from sagan.inspection.maps import attention_of, save_npz
    from sagan.sampling import latents
    from sagan.snapshot import load_snapshot

    generator = load_snapshot(source)
    _require_attention(generator, source)
    each_seed, labels = _seeds_and_labels(chosen, classes, generator)
    make_folder(out)
    z = latents(each_seed, generator.z_dim)
    recording = attention_of(generator, z, labels, each_seed, _points(points), progress=True)
    health = attention_health(generator, recording.maps, recording.points)
    on_shapes = recording.class_names == CLASSES
    partners = _partner_numbers(recording) if on_shapes else {}
    save_npz(out / "attention.npz", recording)
    save_png(out / "attention.png", attention_figure(recording))
    if as_json:
        print(json.dumps({"images": len(each_seed), "attention": health, "partner": partners}))
        return
    print(describe(health))
    for name, numbers in partners.items():
        print(_partner_sentence(name, numbers))
    if on_shapes and not partners:
        print("no query point lies on one of two clear objects: attention to the partner object is not measured")
    print(f"\n{_table(health)}\n\n{out / 'attention.png'}\n{out / 'attention.npz'}")


def _check_points(text: str) -> None:
    if text not in ("random", "grid") and not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_POINTS):
        raise UserError(f"--points {text}: expected a number from 1 to {MOST_POINTS}, random or grid")


def _points(text: str) -> "Points":
    from sagan.inspection.points import grid_points, random_points, salient_points

    if text == "grid":
        return grid_points(GRID)
    return random_points(RANDOM) if text == "random" else partial(salient_points, k=int(text))


def _require_attention(generator: "Generator", source: str) -> None:
    from sagan.inspection.health import attention_modules

    if not attention_modules(generator):
        place = ATTENTION_RESOLUTION[generator.resolution]
        raise UserError(
            f"{source}: this generator has no attention, so there is nothing to show; "
            f"train one with, for example, --set generator.attention.{place}=self_attention"
        )


def _seeds_and_labels(
    seeds: Sequence[int], classes: str | None, generator: "Generator"
) -> "tuple[list[int], Tensor | None]":
    """The seed and the label of each image, with `classes` every class of a seed after the other."""
    import torch

    from sagan.sampling import default_labels

    labels = None if classes is None else parse_classes(classes, generator.class_names, generator.num_classes)
    count = len(seeds) * (1 if labels is None else len(labels))
    if count > MOST_IMAGES:
        raise UserError(f"{count} images asked for; a figure shows at most {MOST_IMAGES}")
    if labels is None:
        return list(seeds), default_labels(seeds, generator.num_classes)
    return [seed for seed in seeds for _ in labels], torch.tensor(labels).repeat(len(seeds))


def _partner_numbers(recording: "Recording") -> dict[str, dict[str, float]]:
    """On `shapes`: how much attention of points on one object falls on the other."""
    import numpy as np

    from sagan.evaluation.coherence import clear_pairs
    from sagan.evaluation.segmentation import find_objects
    from sagan.inspection.partner import object_mask, partner_mass

    which, objects = clear_pairs(find_objects(recording.images))
    resolution = recording.images.shape[1]
    masks = np.zeros((len(recording.images), 2, resolution, resolution), bool)
    for i, image in enumerate(which):
        for side, row in enumerate((2 * i, 2 * i + 1)):
            masks[image, side] = object_mask(objects.shape[row], objects.centre[row], objects.area[row], resolution)
    return {
        name: {**asdict(m), "ratio_to_chance": m.mass / m.chance} for name, m in partner_mass(recording, masks).items()
    }


def _partner_sentence(name: str, numbers: dict[str, float]) -> str:
    return (
        f"{name}: of the mass of {numbers['points']} points on an object {100 * numbers['mass']:.1f} % falls on "
        f"the other object (chance {100 * numbers['chance']:.1f} %, on their own {100 * numbers['own']:.1f} %)"
    )


def _table(health: dict[str, dict[str, float]]) -> str:
    """One line a map; `uniform` stands for what uniform attention would have."""
    rows = [["", *("uniform" if column.startswith("uniform") else column for column in COLUMNS)]]
    for name, numbers in health.items():
        rows.append([name, *(f"{numbers[column]:.3g}" if column in numbers else "-" for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )

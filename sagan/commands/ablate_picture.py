"""The picture of an ablation: a row a variant, samples of the same seeds, and what the same points attend to."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sagan.attention import KINDS, AttentionMap
from sagan.commands.ablate_numbers import Row, metrics_of
from sagan.commands.ablate_plan import Ablation
from sagan.comparison.notes import score_text
from sagan.images import sheet
from sagan.inspection.figure import attention_figure
from sagan.inspection.health import module_of
from sagan.inspection.maps import Recording, attention_of
from sagan.inspection.points import grid_points
from sagan.networks import Generator
from sagan.sampling import default_labels, generate, latents
from sagan.snapshot import load_snapshot

SAMPLES, COLUMNS, ATTENDED, POINTS, TILE = 32, 8, 2, 4, 96
SIDE = 64  # pixels: to about this side samples are enlarged
GAP, HEADING = 16, 34  # pixels
TEXT, FAINT, PAPER = (32, 33, 36), (105, 109, 115), (255, 255, 255)


def ablation_picture(ablation: Ablation, rows: Sequence[Row]) -> np.ndarray | None:
    """uint8 (H, W, 3): of each variant with a finished run the one of its lowest seed; None without any."""
    metric = next(iter(metrics_of(rows)), None)
    parts = list[tuple[str, np.ndarray]]()
    for row in rows:
        if row.runs:
            first = row.runs[0]
            scored = f"    {metric} {score_text(metric, first.scores[metric])}" if metric in first.scores else ""
            generator = load_snapshot(ablation.run_folder((row.name, first.seed)))
            parts.append(
                (f"{row.name}    seed {first.seed}{scored}", _beside(_samples(generator), _attention(generator)))
            )
    return _stacked(parts) if parts else None


def _samples(generator: Generator) -> np.ndarray:
    seeds = range(SAMPLES)
    labels = default_labels(seeds, generator.num_classes)
    images = torch.cat(list(generate(generator, latents(seeds, generator.z_dim), labels)))
    return sheet(images.numpy(), COLUMNS, scale=max(1, SIDE // generator.resolution))


def _attention(generator: Generator) -> np.ndarray | None:
    """The attention figure of a few of the samples; None where there is nothing to show."""
    seeds = range(ATTENDED)
    labels = default_labels(seeds, generator.num_classes)
    recording = attention_of(generator, latents(seeds, generator.z_dim), labels, seeds, grid_points(POINTS))
    shown = maps_shown(recording)
    return attention_figure(shown, tile=TILE) if shown.maps else None


def maps_shown(recording: Recording) -> Recording:
    """Of each module the first map that belongs to points of the image, the mean of its heads; else all of its maps."""
    of_points = {
        name: AttentionMap(found.kind, found.weights.mean(1, keepdim=True))
        for name, found in recording.maps.items()
        if KINDS[found.kind].per_query and KINDS[found.kind].spatial
    }
    first = {module_of(name): name for name in reversed(of_points)}
    maps = {
        name: of_points.get(name, found)
        for name, found in recording.maps.items()
        if first.get(module_of(name), name) == name
    }
    return replace(recording, maps=maps)


def _beside(left: np.ndarray, right: np.ndarray | None) -> np.ndarray:
    if right is None:
        return left
    canvas = np.full((max(len(left), len(right)), left.shape[1] + GAP + right.shape[1], 3), PAPER, np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    canvas[: len(right), left.shape[1] + GAP :] = right
    return canvas


def _stacked(parts: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """One part under the other, each under its heading, and a line that says how to read them."""
    width = max(part.shape[1] for _, part in parts) + 2 * GAP
    height = sum(len(part) + HEADING + GAP for _, part in parts) + HEADING
    canvas = Image.new("RGB", (width, height), PAPER)
    draw, y = ImageDraw.Draw(canvas), 0
    for heading, part in parts:
        draw.text((GAP, y + HEADING - 8), heading, TEXT, ImageFont.load_default(18), "ls")
        canvas.paste(Image.fromarray(part), (GAP, y + HEADING))
        y += len(part) + HEADING + GAP
    note = (
        f"Left: seeds 0-{SAMPLES - 1}. Right: the same {POINTS} points in the first {ATTENDED} of them, heads averaged."
    )
    draw.text((GAP, y + 4), note, FAINT, ImageFont.load_default(13), "la")
    return np.asarray(canvas)

"""What a run shows of itself: sheets of samples, and what the generator attends to in some of them."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from sagan.images import save_png, sheet
from sagan.inspection.figure import attention_figure
from sagan.inspection.health import shows_something
from sagan.inspection.maps import attention_of
from sagan.inspection.points import salient_points
from sagan.networks import Generator
from sagan.sampling import default_labels, generate, latents

MOST_ROWS, FIGURE_IMAGES, FIGURE_POINTS = 16, 6, 4


def save_sheets(run: Path, step: int, generator: Generator, per_class: int) -> np.ndarray:
    """samples/<step>.png, one row a class from fixed seeds, and <step>-attention.png where there is attention.

    Returns the samples, uint8 (rows, per_class, R, R, 3).
    """
    rows = min(generator.num_classes, MOST_ROWS) or per_class
    seeds = range(rows * per_class)
    labels = torch.arange(rows).repeat_interleave(per_class) if generator.num_classes else None
    images = samples(generator, seeds, labels)
    save_png(run / "samples" / f"{step:08d}.png", sheet(images, per_class, scale=_scale(generator.resolution)))
    if shows_something(generator):
        shown = range(FIGURE_IMAGES)
        z, labels = latents(shown, generator.z_dim), default_labels(shown, generator.num_classes)
        recording = attention_of(generator, z, labels, shown, partial(salient_points, k=FIGURE_POINTS))
        save_png(run / "samples" / f"{step:08d}-attention.png", attention_figure(recording))
    return images.reshape(rows, per_class, *images.shape[1:])


def samples(generator: Generator, seeds: range, labels: torch.Tensor | None) -> np.ndarray:
    """Images uint8 (N, H, W, 3) of seeds and labels, on the generator's device."""
    device = next(generator.parameters()).device
    return np.concatenate([b.numpy() for b in generate(generator, latents(seeds, generator.z_dim), labels, device)])


def _scale(resolution: int) -> int:
    return max(1, 64 // resolution)

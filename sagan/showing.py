"""What a run shows of itself: sample sheets with their attention, and scores of the averaged generator."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sagan.checkpoint import Progress
from sagan.data.shapes import CLASSES
from sagan.errors import UserError
from sagan.evaluation.coherence import coherence
from sagan.files import append_json_line
from sagan.images import save_png, sheet
from sagan.inspection.figure import attention_figure
from sagan.inspection.maps import attention_of
from sagan.inspection.points import salient_points
from sagan.networks import Generator
from sagan.sampling import default_labels, generate, latents
from sagan.settings import EvaluateSettings

MOST_ROWS, FIGURE_IMAGES, FIGURE_POINTS = 16, 6, 4
HIGHER_IS_BETTER = {"coherence", "two_objects", "hue_agreement", "shape_agreement"}


def save_sheets(run: Path, step: int, generator: Generator, per_class: int) -> None:
    """samples/<step>.png, one row a class from fixed seeds, and <step>-attention.png where there is attention."""
    rows = min(generator.num_classes, MOST_ROWS) or per_class
    seeds = range(rows * per_class)
    labels = torch.arange(rows).repeat_interleave(per_class) if generator.num_classes else None
    images = samples(generator, seeds, labels)
    save_png(run / "samples" / f"{step:08d}.png", sheet(images, per_class, scale=_scale(generator.resolution)))
    if len(generator.attention):
        shown = range(FIGURE_IMAGES)
        z, labels = latents(shown, generator.z_dim), default_labels(shown, generator.num_classes)
        recording = attention_of(generator, z, labels, shown, partial(salient_points, k=FIGURE_POINTS))
        save_png(run / "samples" / f"{step:08d}-attention.png", attention_figure(recording))


def samples(generator: Generator, seeds: range, labels: torch.Tensor | None) -> np.ndarray:
    """Images uint8 (N, H, W, 3) of seeds and labels, on the generator's device."""
    device = next(generator.parameters()).device
    return np.concatenate([b.numpy() for b in generate(generator, latents(seeds, generator.z_dim), labels, device)])


def evaluate_samples(
    run: Path, settings: EvaluateSettings, progress: Progress, generator: Generator, say: Callable[[str], None]
) -> Progress:
    """Score `settings.num` samples, append the result to metrics.jsonl; returns the progress with the best so far."""
    seeds = range(settings.num)
    labels = default_labels(seeds, generator.num_classes)
    images = samples(generator, seeds, labels)
    scores = coherence(images, None if labels is None else labels.numpy()).to_dict()
    append_json_line(run / "metrics.jsonl", {"step": progress.step, "num": settings.num, **scores})
    say(f"step {progress.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    if settings.best is None:
        return progress
    score = scores[settings.best]
    if progress.best is not None and score <= progress.best:
        return progress
    return replace(progress, best=score, best_step=progress.step)


def check_metrics(settings: EvaluateSettings, class_names: Sequence[str]) -> None:
    """UserError for a metric that is unknown, or that does not fit the data."""
    unknown = [name for name in settings.metrics if name != "coherence"]
    if unknown:
        raise UserError(f"evaluate.metrics: unknown metric {unknown[0]!r}; known: coherence")
    if settings.every and tuple(class_names) != CLASSES:
        raise UserError("evaluate.metrics: coherence is defined on the shapes data alone; set evaluate.every=0")
    if settings.best is not None and settings.best not in HIGHER_IS_BETTER:
        raise UserError(f"evaluate.best: unknown score {settings.best!r}; known: {', '.join(sorted(HIGHER_IS_BETTER))}")


def _scale(resolution: int) -> int:
    return max(1, 64 // resolution)

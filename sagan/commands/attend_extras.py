"""What `sagan attend` makes beside the figure: the ablation, the page, the animations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagan.commands.attend_options import Options
from sagan.commands.attend_report import coherence_without
from sagan.commands.attended import Subject, record_generator
from sagan.commands.measured import Source
from sagan.data.shapes import CLASSES
from sagan.evaluation.perceptual import load_perceptual
from sagan.images import save_animation, save_png
from sagan.inspection.ablation import ablate
from sagan.inspection.animation import path_frames, path_points, snapshot_frames
from sagan.inspection.maps import Points, attention_of
from sagan.inspection.page import write_page
from sagan.inspection.page_data import PageData
from sagan.snapshot import load_snapshot, snapshots

FRAMES, FRAMES_PER_SECOND = 48, 12  # of a moving point
SNAPSHOTS_PER_SECOND = 2


def write_ablation(subject: Subject, options: Options) -> tuple[dict[str, Any], Path]:
    """ablation.png: images with attention, without, and their difference; and the numbers of what is lost."""
    found = ablate(subject.generator, subject.z, subject.labels)
    path = options.out / "ablation.png"
    save_png(path, found.picture())
    change: dict[str, Any] = {"grey_levels": found.change}
    if options.lpips_weights is not None:
        perceptual = load_perceptual("alex", options.lpips_weights)
        change["lpips"] = float(perceptual.distance(*map(_tensor, (found.with_attention, found.without))).mean())
    if subject.generator.class_names == CLASSES:
        change["with"], change["without"] = coherence_without(subject.generator)
    return change, path


def write_html(data: PageData, options: Options, health: dict[str, dict[str, float]]) -> Path:
    """attention.html: the page on which the pointer shows the map of every cell."""
    path = options.out / "attention.html"
    write_page(path, data, health, Path(options.source).name)
    return path


def write_animation(source: Source, subject: Subject, points: Points, options: Options) -> Path:
    """attention-snapshots: the same seeds and points over a run; attention-path: a point on its way; .gif or .mp4."""
    if options.animate == "path":
        recording = record_generator(subject, path_points(FRAMES), options.layers)
        frames, pace = path_frames(recording, options.tile, options.smooth), FRAMES_PER_SECOND
    else:
        # Points are chosen on the newest images: a point that moves with every snapshot could not be compared.
        fixed = record_generator(subject, points, options.layers).points
        places = snapshots(source.path)
        recordings = [
            attention_of(load_snapshot(place), subject.z, subject.labels, subject.seeds, fixed) for place in places
        ]
        steps = [int(place.name) for place in places]
        frames, pace = snapshot_frames(recordings, steps, options.tile, options.smooth), SNAPSHOTS_PER_SECOND
    path = options.out / f"attention-{options.animate}.{'mp4' if options.mp4 else 'gif'}"
    save_animation(path, frames, pace)
    return path


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)

"""Animations: attention over the snapshots of a run, and attention of a moving query point."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sagan.attention import KINDS, AttentionMap
from sagan.inspection.figure import attention_figure
from sagan.inspection.record import Recording
from sagan.utils.images import name_rows
from sagan.utils.progress import track

RADIUS = 0.33  # of the path, in image sides


def path_points(frames: int) -> Tensor:
    """Evenly spaced points (frames, 2) on a circle around the center of the image, clockwise from the top."""
    angles = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    return torch.stack([0.5 - RADIUS * torch.cos(angles), 0.5 + RADIUS * torch.sin(angles)], dim=1)


def path_frames(recording: Recording, tile: int, smooth: bool = False) -> np.ndarray:
    """One frame per point of the recording, uint8 (k, H, W, 3): each image with the point and its map."""
    frames, count = [], recording.points.shape[1]
    for j in track(range(count), count, "drawing"):
        maps = {
            name: AttentionMap(m.kind, m.weights[:, :, j : j + 1]) if KINDS[m.kind].per_query else m
            for name, m in recording.maps.items()
        }
        point = replace(recording, points=recording.points[:, j : j + 1], maps=maps)
        frames.append(attention_figure(point, smooth, tile))
    return np.stack(frames)


def snapshot_frames(recordings: Sequence[Recording], steps: Sequence[int], tile: int, smooth: bool) -> np.ndarray:
    """One frame per snapshot, uint8 (n, H, W, 3): the figure with its step."""
    figures = [
        name_rows(attention_figure(recording, smooth, tile), [f"step {step}"])
        for recording, step in track(zip(recordings, steps, strict=True), len(steps), "drawing")
    ]
    width = max(figure.shape[1] for figure in figures)
    return np.stack([np.pad(f, ((0, 0), (width - f.shape[1], 0), (0, 0)), constant_values=255) for f in figures])

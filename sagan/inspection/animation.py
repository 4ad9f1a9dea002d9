"""Attention in motion: how it forms over a run, and what a moving query point sees."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sagan.attention import KINDS, AttentionMap
from sagan.images import name_rows
from sagan.inspection.figure import attention_figure
from sagan.inspection.maps import Recording
from sagan.progress import track

RADIUS = 0.33  # of the path, in image sides


def path_points(frames: int) -> Tensor:
    """Points (frames, 2) on a circle about the middle of the image, clockwise from its top, at equal distances."""
    angles = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    return torch.stack([0.5 - RADIUS * torch.cos(angles), 0.5 + RADIUS * torch.sin(angles)], dim=1)


def path_frames(recording: Recording, tile: int, smooth: bool = False) -> np.ndarray:
    """One frame a point of the recording, uint8 (k, H, W, 3): each image with the point, and its map."""
    points = range(recording.points.shape[1])
    return np.stack([attention_figure(_at(recording, j), smooth, tile) for j in track(points, len(points), "drawing")])


def snapshot_frames(recordings: Sequence[Recording], steps: Sequence[int], tile: int, smooth: bool) -> np.ndarray:
    """One frame a snapshot, uint8 (n, H, W, 3): the figure, with the step beside it."""
    figures = [
        name_rows(attention_figure(recording, smooth, tile), [f"step {step}"])
        for recording, step in track(zip(recordings, steps, strict=True), len(steps), "drawing")
    ]
    width = max(figure.shape[1] for figure in figures)
    return np.stack([_padded(figure, width) for figure in figures])


def _at(recording: Recording, j: int) -> Recording:
    maps = {
        name: AttentionMap(m.kind, m.weights[:, :, j : j + 1]) if KINDS[m.kind].per_query else m
        for name, m in recording.maps.items()
    }
    return replace(recording, points=recording.points[:, j : j + 1], maps=maps)


def _padded(figure: np.ndarray, width: int) -> np.ndarray:
    return np.pad(figure, ((0, 0), (width - figure.shape[1], 0), (0, 0)), constant_values=255)

"""What a generator attends to while it draws: the maps of a few query points, for pictures, numbers and files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sagan.attention import AttentionMap, record_attention
from sagan.files import atomic_file
from sagan.images import to_uint8
from sagan.inspection.health import module_gammas, resolutions
from sagan.networks import Generator
from sagan.spectral_norm import hold_state

BATCH = 8


@dataclass(frozen=True)
class Recording:
    """B images and, for k query points on each, the map of every attention module. Everything is on the CPU."""

    images: np.ndarray  # (B, H, W, 3) uint8
    seeds: np.ndarray  # (B,) int64
    labels: np.ndarray  # (B,) int64; -1 without classes
    points: Tensor  # (B, k, 2) float64: fractions of height and width
    maps: dict[str, AttentionMap]  # name -> weights (B, heads, k, H', W') float32
    gamma: dict[str, float]  # name -> attention gain, of modules that have one
    resolution: dict[str, tuple[int, int]]  # name -> size of the query map
    class_names: tuple[str, ...] = ()

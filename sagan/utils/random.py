"""Random generators keyed by (seed, purpose, index): the same on every process and machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed; different purposes and indices give independent streams."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, index))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator (Philox, whose stream is stable across versions of NumPy)."""
    return np.random.Generator(np.random.Philox(key(seed, purpose, *index)))


def torch_generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A torch generator on the CPU."""
    import torch

    return torch.Generator().manual_seed(key(seed, purpose, *index))

"""One source of randomness: generators keyed by (seed, purpose, index), the same on every process and machine."""

import hashlib

import numpy as np


def key(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit key; different purposes and indices give independent streams."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, index))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator (Philox, whose stream NumPy keeps across versions)."""
    return np.random.Generator(np.random.Philox(key(seed, purpose, *index)))

"""The order of training images: one endless sequence, a fresh permutation each epoch, known at every position.

The images of a step follow from (seed, size, position) alone. So every process computes the same global batch and takes
its share, and a resumed run continues where it stopped without any stored state.
"""

from functools import lru_cache

import numpy as np

from sagan.randomness import numpy_generator


def indices(seed: int, size: int, start: int, count: int) -> np.ndarray:
    """Positions start … start + count - 1 of the endless order over `size` images: int64 (count,).

    Every epoch (`size` positions) holds each image once. Raises ValueError for a size below 1 or a negative position.
    """
    if size < 1 or start < 0 or count < 0:
        raise ValueError(f"no order of {size} images at positions {start} to {start + count}")
    pieces = [np.empty(0, np.int64)]
    while count > 0:
        epoch, offset = divmod(start, size)
        piece = _permutation(seed, size, epoch)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    # Sorting the raw stream: NumPy promises that to stay the same across versions, but not Generator.permutation.
    return np.argsort(numpy_generator(seed, "order", epoch).bit_generator.random_raw(size), kind="stable")

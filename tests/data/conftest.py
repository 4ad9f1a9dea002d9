"""Real image files for the tests of data preparation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Photo = Callable[..., Image.Image]


@pytest.fixture
def photo() -> Photo:
    """photo(seed, size=(W, H)): a smooth RGB picture, another one for every seed."""

    def make(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def folder(tmp_path: Path, photo: Photo) -> Path:
    """A sound data set: classes cat and dog, four pictures each."""
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            photo(10 * label + i).save(root / name / f"{i}.png")
    return root

"""Features of a set: the same with a store and without, and taken up where a kill left them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from standin import register_standin

from sagan.evaluation.extractors import Backbone, load_backbone
from sagan.evaluation.features import CHUNK, Extraction, ImageSet, extract

COUNT = 2 * CHUNK + 76


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(register_standin(), logits=True)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (COUNT, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def image_set(pixels: torch.Tensor, seen: Callable[[np.ndarray], None] = lambda indices: None) -> ImageSet:
    def read(indices: np.ndarray) -> torch.Tensor:
        seen(indices)
        return pixels[torch.from_numpy(indices)]

    return ImageSet(len(pixels), (8, 8), read, "key", "noise")


def everything(images: ImageSet, backbone: Backbone, store: Path | None) -> Extraction:
    return extract(images, backbone, 64, features=True, logits=True, store=store)


def assert_equal(found: Extraction, expected: Extraction) -> None:
    for name in ("features", "logits"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.statistics.covariance, expected.statistics.covariance, rtol=1e-5, atol=1e-8)
    assert found.statistics.count == COUNT


def test_a_store_changes_nothing(pixels: torch.Tensor, backbone: Backbone, tmp_path: Path) -> None:
    """Breaks when images at the edge of a chunk are lost, doubled or put in another order."""
    expected = everything(image_set(pixels), backbone, None)
    assert expected.features is not None
    assert expected.features.shape == (COUNT, 64)
    assert_equal(everything(image_set(pixels), backbone, tmp_path), expected)
    np.testing.assert_allclose(expected.statistics.mean, expected.features.astype(np.float64).mean(0), rtol=1e-9)


def test_a_killed_extraction_goes_on(pixels: torch.Tensor, backbone: Backbone, tmp_path: Path) -> None:
    """Breaks when what was done is done again, or what was cut off counts as done."""
    read: list[int] = []

    def until_the_second_chunk(indices: np.ndarray) -> None:
        if indices[0] >= CHUNK + 64:
            raise KeyboardInterrupt
        read.extend(indices.tolist())

    with pytest.raises(KeyboardInterrupt):
        everything(image_set(pixels, until_the_second_chunk), backbone, tmp_path)
    read.clear()
    found = everything(image_set(pixels, lambda indices: read.extend(indices.tolist())), backbone, tmp_path)
    assert read == list(range(CHUNK, COUNT))
    assert_equal(found, everything(image_set(pixels), backbone, None))


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"x" + content[1:]])
def test_a_damaged_chunk_is_computed_again(
    pixels: torch.Tensor, backbone: Backbone, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Breaks when a truncated or changed file is believed, or ends in a traceback."""
    expected = everything(image_set(pixels), backbone, tmp_path)
    path = sorted(tmp_path.iterdir())[1]
    path.write_bytes(damage(path.read_bytes()))
    assert_equal(everything(image_set(pixels), backbone, tmp_path), expected)


def test_logits_that_a_store_lacks_are_computed(pixels: torch.Tensor, backbone: Backbone, tmp_path: Path) -> None:
    """Breaks when an earlier evaluation without IS leaves one with IS without logits."""
    extract(image_set(pixels), backbone, 64, store=tmp_path)
    assert_equal(everything(image_set(pixels), backbone, tmp_path), everything(image_set(pixels), backbone, None))

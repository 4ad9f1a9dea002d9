"""The nearest images equal those of comparing all with all, at equal distances too; the sheet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sagan.evaluation.lpips import load_perceptual, nearest, nearest_grid
from sagan.utils.images import read_png

WIDTHS = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


def vectors(count: int, size: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def everything(samples: Tensor, others: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances by the definition: all differences, in float64, a stable sort."""
    differences = samples.double().numpy()[:, None] - others.double().numpy()
    distances = np.square(differences).sum(-1).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_is_that_of_comparing_everything(batch: int, k: int) -> None:
    """Breaks when a batch is forgotten, counted from the wrong place, or smaller than k."""
    samples, others = vectors(9), vectors(150, seed=1)
    indices, distances = everything(samples, others, k)
    found = nearest(samples, others.split(batch), k)
    assert found.indices.dtype == np.int64
    assert found.distances.dtype == np.float32
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, rtol=1e-6)


@pytest.mark.parametrize("batch", [3, 50, 300])
def test_of_equally_near_ones_the_first(batch: int) -> None:
    """Breaks when a sort is not stable, or a candidate as near as the last one kept is left out before the sort."""
    rng = torch.Generator().manual_seed(2)
    samples, others = (torch.randint(0, 3, (n, 4), generator=rng).float() for n in (20, 300))  # 81 different ones
    samples, others = samples * 0.1 + 0.7, others * 0.1 + 0.7  # whose rounding differs with the order of operations
    indices, distances = everything(samples, others, 12)
    found = nearest(samples, others.split(batch), 12)
    assert np.array_equal(found.indices, indices)
    assert np.array_equal(found.distances, distances)


def test_nearest_does_not_cancel() -> None:
    """Breaks when a distance is ‖a‖² + ‖b‖² − 2ab: of these, in float32, nothing is left."""
    samples = vectors(6) * 1e-2 + 1000
    others = torch.cat([vectors(80, seed=1) * 1e-2 + 1000, samples])
    indices, distances = everything(samples, others, 4)
    found = nearest(samples, others.split(16), 4)
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, rtol=1e-6, atol=0)
    assert found.indices[:, 0].tolist() == list(range(80, 86))
    assert (found.distances[:, 0] == 0).all()


def test_a_training_image_is_found(tmp_path: Path) -> None:
    """Breaks when LPIPS of a copy, embedded in another batch, is more than 1e-6 or not the least."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    for i, shape in WIDTHS.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        tensors[f"features.{i}.weight"] = torch.randn(shape, generator=rng) * scale
        tensors[f"features.{i}.bias"] = torch.zeros(shape[0])
    torch.save(tensors, tmp_path / "alex.pth")
    perceptual = load_perceptual("alex", tmp_path / "alex.pth")
    training = torch.randint(0, 256, (40, 32, 32, 3), generator=rng, dtype=torch.uint8)
    samples = torch.stack([training[33], training[5].flip(1), training[0]])
    found = nearest(perceptual.embed(samples), (perceptual.embed(part) for part in training.split(16)), 3)
    assert found.indices[[0, 2], 0].tolist() == [33, 0]
    assert (found.distances[[0, 2], 0] < 1e-6).all()
    assert (found.distances[1] > 1e-3).all()
    near = perceptual.distance(samples[1:2].expand(3, -1, -1, -1), training[torch.from_numpy(found.indices[1])])
    assert np.allclose(found.distances[1], near.numpy(), atol=1e-6)


def tiles(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[slice, slice]:
    """Rows and columns of the rectangle of one colour; fails when it is not one."""
    rows, columns = np.nonzero((sheet == colour).all(-1))
    where = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    assert (sheet[where] == colour).all()
    return where


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (128, 96)])
def test_sheet(size: tuple[int, int]) -> None:
    """Breaks when a tile is lost, moved to another sample, covered or blurred, or has no distance under it."""
    colours = np.array([[(200, 10 * row, 10 * column) for column in range(4)] for row in range(3)], np.uint8)
    pictures = np.broadcast_to(colours[:, :, None, None], (3, 4, *size, 3))
    sheet = nearest_grid(pictures[:, 0], pictures[:, 1:], np.full((3, 3), 0.125), "nearest")
    height, width = (side * {32: 2, 20: 4, 96: 1}[size[1]] for side in size)
    for row in range(3):
        found = [tiles(sheet, tuple(colour)) for colour in colours[row]]
        assert {(y.stop - y.start, x.stop - x.start) for y, x in found} == {(height, width)}
        assert len({y.start for y, _ in found}) == 1
        lefts = [x.start for _, x in found]
        assert lefts == sorted(lefts)
        assert lefts[1] - lefts[0] > lefts[2] - lefts[1] == lefts[3] - lefts[2] > width
        below = [sheet[y.stop : y.stop + 18, x.start : x.stop] for y, x in found]
        assert (below[0] == 255).all()
        assert all((part < 128).any() for part in below[1:])


def test_sheet_shows_every_pixel_and_the_title() -> None:
    """Breaks when tiles are resampled, or a title longer than one tile is cut off."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    short, long = (nearest_grid(noise[:, 0], noise[:, 1:], np.array([[3.0]]), title) for title in ("", "nearest " * 20))
    assert long.shape[1] > 800 > short.shape[1]
    assert (long[:, -12:] == 255).all()
    assert (long[:30, -80:] < 128).any()
    enlarged = np.asarray(Image.fromarray(noise[0, 0]).resize((64, 64), Image.Resampling.NEAREST))
    top, left = np.argwhere((short[56:] != 255).any(-1))[0] + (56, 0)
    assert np.array_equal(short[top : top + 64, 12 : 12 + 64], enlarged), (top, left)


@pytest.mark.assets
def test_real_training_images(assets: Path) -> None:
    """Breaks when trained weights do not find a slightly brighter training image again, or the images beside it."""
    folder = assets / "cifar10"
    paths = [path for label in sorted((folder / "train").iterdir()) for path in sorted(label.glob("*.png"))[:40]]
    training = torch.from_numpy(np.stack([read_png(path) for path in paths]))
    samples = training[[7, 123, 300]]
    brighter = (samples.int() + 6).clamp(max=255).byte()
    perceptual = load_perceptual("alex", assets / "lpips-alex.pth")
    embedded = [perceptual.embed(part) for part in training.split(64)]
    same, near = (nearest(perceptual.embed(images), embedded, 2) for images in (samples, brighter))
    assert same.indices[:, 0].tolist() == near.indices[:, 0].tolist() == [7, 123, 300]
    assert (same.distances[:, 0] < 1e-6).all()
    assert (near.distances[:, 0] < 0.2 * near.distances[:, 1]).all()

import numpy as np
import pytest
import torch

from sagan.attention.base import cells_of
from sagan.data.shapes import object_masks, placement, render_many
from sagan.errors import UserError
from sagan.inspection.points import _nearest_rows, grid_points, pixel_points, random_points, salient_points


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (32, 32), (49, 255), (256, 3)])
def test_pixels_to_fractions_and_back_is_exact(size: tuple[int, int]) -> None:
    """Breaks when a fraction is not the pixel's centre, or rounds into a neighbour."""
    pixels = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    points = pixel_points(pixels, *size)
    assert torch.equal(cells_of(points, *size), pixels)
    assert torch.equal(points, (pixels.double() + 0.5) / torch.tensor(size))


@pytest.mark.parametrize(("pixel", "size", "cells", "cell"), [
    ((31, 0), (32, 32), (16, 16), (15, 0)),
    ((16, 15), (32, 32), (16, 16), (8, 7)),
    ((6, 12), (7, 13), (7, 13), (6, 12)),
    ((10, 20), (21, 21), (7, 7), (3, 6)),
    ((4, 3), (9, 9), (3, 3), (1, 1)),
])  # fmt: skip
def test_a_pixel_falls_in_the_map_cell_that_covers_it(pixel, size, cells, cell) -> None:
    """Breaks when rows and columns are exchanged or the cell is a neighbour's."""
    assert cells_of(pixel_points(torch.tensor([pixel]), *size), *cells).tolist() == [list(cell)]


@pytest.mark.parametrize("pixel", [(-1, 0), (0, -1), (5, 0), (0, 7)])
def test_a_pixel_outside_the_image_is_refused(pixel: tuple[int, int]) -> None:
    """Breaks when a wrong pixel is clipped or wraps around silently."""
    with pytest.raises(UserError, match=f"{pixel[0]},{pixel[1]} lies outside .* 5 rows and 7 columns"):
        pixel_points(torch.tensor([[0, 0], pixel]), 5, 7)


@pytest.mark.parametrize("k", range(1, 27))
def test_a_grid_is_even(k: int) -> None:
    """Breaks when points are missing, double, outside, or the rows differ by more than one point."""
    points = grid_points(k)
    assert points.shape == (k, 2)
    assert points.min() > 0
    assert points.max() < 1
    _, counts = points[:, 0].unique(return_counts=True)
    assert len(points.unique(dim=0)) == k
    assert counts.max() - counts.min() <= 1
    assert torch.allclose(points[:, 1].mean(), torch.tensor(0.5).double())


def test_nine_points_are_a_three_by_three_grid() -> None:
    """Breaks when the order is not row by row."""
    assert torch.allclose(grid_points(9)[:4] * 6, torch.tensor([[1, 1], [1, 3], [1, 5], [3, 1]]).double())


def test_random_points_come_from_the_seed_alone() -> None:
    """Breaks when the global generator is used, or the seed is not."""
    torch.manual_seed(0)
    first = random_points(1000, 3)
    torch.manual_seed(1)
    assert torch.equal(first, random_points(1000, 3))
    assert not torch.equal(first, random_points(1000, 4))
    assert (first.mean(0) - 0.5).abs().max() < 0.05
    assert first.std(0).min() > 0.25


@pytest.mark.parametrize("resolution", [32, 128])
def test_salient_points_find_both_objects_and_keep_apart(resolution: int) -> None:
    """Breaks when the choice ignores colour (misses objects) or position (sits on one)."""
    images, _ = render_many(24, resolution, seed=5)
    points = salient_points(images, 5)
    assert points.shape == (24, 5, 2)
    cells = cells_of(points, resolution, resolution)
    for i, image_cells in enumerate(cells):
        hit = object_masks(placement(i, 5), resolution)[:, image_cells[:, 0], image_cells[:, 1]]
        assert hit.any(axis=1).all(), f"image {i}"
    apart = torch.cdist(points, points) + 9 * torch.eye(5)
    assert apart.amin((1, 2)).mean() > 0.18


def test_salient_points_are_deterministic_ordered_and_do_not_depend_on_the_batch() -> None:
    """Breaks when images share random numbers, or the order follows the clusters."""
    images, _ = render_many(6, 32, seed=1)
    points = salient_points(images, 4, seed=7)
    assert torch.equal(points[4:5], salient_points(images[4:5], 4, seed=7))
    assert not torch.equal(points, salient_points(images, 4, seed=8))
    assert (points[..., 1].diff(dim=1) >= 0).all()
    assert torch.equal(pixel_points(cells_of(points, 32, 32), 32, 32), points)  # centres of pixels


def test_salient_points_of_an_image_without_anything_are_spread() -> None:
    """Breaks when a constant image divides by zero or gives the same pixel twice."""
    points = salient_points(np.full((1, 9, 15, 3), 200, np.uint8), 9)
    assert len(points[0].unique(dim=0)) == 9
    assert torch.cdist(points[0], points[0]).add(torch.eye(9)).min() > 0.15
    every = salient_points(np.zeros((1, 2, 3, 3), np.uint8), 6)
    assert len(every[0].unique(dim=0)) == 6


def test_salient_points_tell_colours_apart_where_places_do_not() -> None:
    """Breaks when colour is no feature: a disc and the ring around it have one centre."""
    y, x = np.mgrid[-15.5:16, -15.5:16]
    disc = np.hypot(y, x) < 9
    image = np.where(disc[..., None], (220, 40, 40), (40, 160, 60)).astype(np.uint8)
    row, column = cells_of(salient_points(image[None], 2)[0], 32, 32).T
    assert sorted(disc[row, column]) == [False, True]


def test_centres_that_share_a_nearest_pixel_get_different_ones() -> None:
    """Breaks when one pixel is chosen twice."""
    assert _nearest_rows(np.array([[0.0], [1.0], [9.0]]), np.array([[0.1], [0.2]])) == [0, 1]


def test_too_many_or_no_points_are_refused() -> None:
    """Breaks when k is not checked."""
    with pytest.raises(UserError, match="7 points asked for, an image of 2x3 has room for 6"):
        salient_points(np.zeros((1, 2, 3, 3), np.uint8), 7)
    for choose in (grid_points, random_points):
        with pytest.raises(UserError, match="0 query points"):
            choose(0)

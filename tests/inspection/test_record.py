"""Query points, and the maps recorded at them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from page_case import SEEDS, inputs_of, sharp_generator

from sagan.attention import record_attention
from sagan.attention.base import cells_of
from sagan.config.load import load_config
from sagan.data.shapes import object_masks, placement, render_many
from sagan.inspection.record import (
    attention_modules,
    attention_of,
    grid_points,
    pixel_points,
    random_points,
    salient_points,
    save_npz,
)
from sagan.layers.normalization import HeldState
from sagan.models.generator import build_generator
from sagan.sampling.sampler import generate
from sagan.utils.errors import UserError


def test_rows_are_those_of_the_full_maps_and_images_those_of_sampling() -> None:
    generator = sharp_generator()
    z, labels, seeds = inputs_of(generator)
    points = torch.stack([random_points(4, seed) for seed in seeds])
    recording = attention_of(generator, z, labels, seeds, points)
    generator.eval()
    assert np.array_equal(recording.images, torch.cat(list(generate(generator, z, labels))).numpy())
    with record_attention(generator) as full, torch.no_grad():
        generator(z, labels)
    assert list(recording.maps) == list(full) == ["attention.8x8", "attention.16x16"]
    for (name, found), size in zip(recording.maps.items(), (8, 16), strict=True):
        row, column = cells_of(points, size, size).unbind(-1)  # (B, k)
        expected = full[name].weights[torch.arange(11)[:, None], :, row * size + column].transpose(1, 2)
        assert found.weights.shape == (11, 1, 4, 8, 8)
        torch.testing.assert_close(found.weights, expected, rtol=1e-3, atol=1e-6)
        assert found.weights.amax() > 3 / 64  # or the test would compare uniform rows
    assert recording.gamma == {"attention.8x8": 0.5, "attention.16x16": pytest.approx(-0.3)}
    assert recording.resolution == {"attention.8x8": (8, 8), "attention.16x16": (16, 16)}


def test_each_image_is_recorded_as_if_alone() -> None:
    generator = sharp_generator()
    z, labels, seeds = inputs_of(generator)
    assert labels is not None
    choose = partial(salient_points, k=3)
    recording = attention_of(generator, z, labels, seeds, choose)
    assert torch.equal(recording.points, salient_points(recording.images, 3))
    for i in (0, 7, 8, 10):
        alone = attention_of(generator, z[i : i + 1], labels[i : i + 1], seeds[i : i + 1], choose)
        assert torch.equal(alone.points[0], recording.points[i])
        for name in recording.maps:
            assert torch.equal(alone.maps[name].weights[0], recording.maps[name].weights[i])


def test_recording_changes_neither_the_generator_nor_the_random_state() -> None:
    generator = sharp_generator(num_classes=0).train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    state = torch.get_rng_state()
    recording = attention_of(generator, *inputs_of(generator), grid_points(2))
    assert generator.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert all(module.recorder is None for module in attention_modules(generator).values())
    assert not any(module.held for module in generator.modules() if isinstance(module, HeldState))
    assert (recording.labels == -1).all()


def test_npz_holds_everything_and_needs_no_pickle(tmp_path: Path) -> None:
    generator = sharp_generator()
    recording = attention_of(generator, *inputs_of(generator), partial(salient_points, k=3))
    save_npz(tmp_path / "attention.npz", recording)
    with np.load(tmp_path / "attention.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], recording.images)
        assert arrays["images"].dtype == np.uint8
        assert arrays["seeds"].tolist() == SEEDS
        assert arrays["labels"].tolist() == [seed % 4 for seed in SEEDS]
        assert np.array_equal((arrays["point_pixels"] + 0.5) / 32, arrays["points"])
        assert arrays["layers"].tolist() == ["attention.8x8", "attention.16x16"]
        assert arrays["kind"].tolist() == ["softmax row"] * 2
        assert arrays["gamma"] == pytest.approx([0.5, -0.3])
        assert arrays["resolution"].tolist() == [[8, 8], [16, 16]]
        for name in arrays["layers"]:
            maps = arrays[f"maps/{name}"]
            assert (maps.dtype, maps.shape) == (np.float32, (11, 1, 3, 8, 8))
            assert np.abs(maps.sum((3, 4)) - 1).max() < 1e-5
            assert np.array_equal(maps, recording.maps[name].weights.numpy())


def test_without_attention_the_maps_are_empty() -> None:
    generator = build_generator(load_config(None, ["generator.channels=4", "generator.attention={}"]), 0)
    recording = attention_of(generator, *inputs_of(generator), grid_points(2))
    assert recording.maps == recording.gamma == {}
    assert len(recording.images) == 11


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (32, 32), (49, 255), (256, 3)])
def test_a_point_is_the_center_of_its_pixel(size: tuple[int, int]) -> None:
    pixels = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    points = pixel_points(pixels, *size)
    assert torch.equal(cells_of(points, *size), pixels)
    assert torch.equal(points, (pixels.double() + 0.5) / torch.tensor(size))


@pytest.mark.parametrize("pixel", [(-1, 0), (0, -1), (5, 0), (0, 7)])
def test_a_pixel_outside_the_image_is_refused(pixel: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{pixel[0]},{pixel[1]}"):
        pixel_points(torch.tensor([[0, 0], pixel]), 5, 7)


def test_a_grid_is_even_and_goes_row_by_row() -> None:
    for k in range(1, 27):
        points = grid_points(k)
        assert points.shape == points.unique(dim=0).shape == (k, 2)
        assert points.min() > 0
        assert points.max() < 1
        _, counts = points[:, 0].unique(return_counts=True)
        assert counts.max() - counts.min() <= 1
        assert torch.allclose(points[:, 1].mean(), torch.tensor(0.5).double())
    assert torch.allclose(grid_points(9)[:4] * 6, torch.tensor([[1, 1], [1, 3], [1, 5], [3, 1]]).double())


def test_random_points_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = random_points(1000, 3)
    torch.manual_seed(1)
    assert torch.equal(first, random_points(1000, 3))
    assert not torch.equal(first, random_points(1000, 4))
    assert (first.mean(0) - 0.5).abs().max() < 0.05
    assert first.std(0).min() > 0.25


@pytest.mark.parametrize("resolution", [32, 128])
def test_salient_points_find_both_objects_and_keep_apart(resolution: int) -> None:
    images, _ = render_many(24, resolution, seed=5)
    points = salient_points(images, 5)
    assert points.shape == (24, 5, 2)
    cells = cells_of(points, resolution, resolution)
    for i, image_cells in enumerate(cells):
        hit = object_masks(placement(i, 5), resolution)[:, image_cells[:, 0], image_cells[:, 1]]
        assert hit.any(axis=1).all(), f"image {i}"
    apart = torch.cdist(points, points) + 9 * torch.eye(5)
    assert apart.amin((1, 2)).mean() > 0.18


def test_salient_points_go_from_left_to_right_and_do_not_depend_on_the_batch() -> None:
    images, _ = render_many(6, 32, seed=1)
    points = salient_points(images, 4, seed=7)
    assert torch.equal(points[4:5], salient_points(images[4:5], 4, seed=7))
    assert not torch.equal(points, salient_points(images, 4, seed=8))
    assert (points[..., 1].diff(dim=1) >= 0).all()
    assert torch.equal(pixel_points(cells_of(points, 32, 32), 32, 32), points)  # centers of pixels


def test_salient_points_of_a_constant_image_are_spread() -> None:
    points = salient_points(np.full((1, 9, 15, 3), 200, np.uint8), 9)
    assert torch.cdist(points[0], points[0]).add(torch.eye(9)).min() > 0.15
    every = salient_points(np.zeros((1, 2, 3, 3), np.uint8), 6)
    assert len(every[0].unique(dim=0)) == 6


def test_salient_points_distinguish_colors_at_the_same_position() -> None:
    """A disc and the ring around it have one center, but two colors."""
    y, x = np.mgrid[-15.5:16, -15.5:16]
    disc = np.hypot(y, x) < 9
    image = np.where(disc[..., None], (220, 40, 40), (40, 160, 60)).astype(np.uint8)
    row, column = cells_of(salient_points(image[None], 2)[0], 32, 32).T
    assert sorted(disc[row, column]) == [False, True]

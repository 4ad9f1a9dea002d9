"""Conversion to uint8, PNG, image grids and animations."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from sagan.utils.errors import UserError
from sagan.utils.images import image_grid, name_rows, read_png, save_animation, save_png, to_uint8


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_to_uint8():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    images = torch.zeros(1, 3, 1, 5)
    images[0, 1, 0] = values
    assert to_uint8(images).shape == (1, 1, 5, 3)
    assert to_uint8(images)[0, 0, :, 1].tolist() == [0, 64, 128, 191, 255]
    every = torch.arange(256).float().sub(127.5).div(127.5).expand(1, 3, 1, 256)  # centers of the 256 steps
    assert to_uint8(every)[0, 0, :, 0].tolist() == list(range(256))
    assert to_uint8(images * 7)[0, 0, :, 1].tolist() == [0, 0, 128, 255, 255]


def test_png_is_lossless_and_has_no_metadata(tmp_path: Path):
    image = noise(9, 7, 3)
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, image)
    assert np.array_equal(read_png(tmp_path / "a.png"), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        assert not opened.info
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"a\.png"):
        read_png(tmp_path / "a.png")


def test_grid_places_every_image():
    images = noise(5, 4, 6, 3)
    laid_out = image_grid(images, columns=3, scale=2, border=1)
    assert laid_out.shape == (2 * 9 + 1, 3 * 13 + 1, 3)
    for i, image in enumerate(images):
        top, left = 1 + i // 3 * 9, 1 + i % 3 * 13
        assert np.array_equal(laid_out[top : top + 8 : 2, left : left + 12 : 2], image)
        assert np.array_equal(laid_out[top + 1 : top + 8 : 2, left + 1 : left + 12 : 2], image)
    used = 5 * 8 * 12
    assert (laid_out[0] == 255).all()
    assert (laid_out == 255).all(-1).sum() >= laid_out[..., 0].size - used


def test_names_stand_before_their_rows():
    plain = image_grid(np.full((6, 32, 32, 3), 128, np.uint8), columns=3)
    named = name_rows(plain, ["x", "a rather long name"])
    margin = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, margin:], plain)
    upper, lower = np.split((named[:, :margin] < 128).all(-1), 2)
    assert 0 < upper.sum() < lower.sum()
    assert not lower[:, :2].any()


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_animation(tmp_path: Path, suffix: str):
    frames = np.repeat(np.linspace(20, 230, 6).astype(np.uint8), 36 * 36 * 3).reshape(6, 36, 36, 3)
    save_animation(tmp_path / f"a{suffix}", frames, fps=20)
    found = imageio.imread(tmp_path / f"a{suffix}", plugin="pillow" if suffix == ".gif" else "FFMPEG")
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).max() <= 6
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_an_unknown_animation_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"\.gif or \.mp4"):
        save_animation(tmp_path / "a.avi", noise(2, 8, 8, 3), fps=20)
    assert not list(tmp_path.iterdir())

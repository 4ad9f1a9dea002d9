"""Archives of images, which are not to be trusted."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sagan.data.sources import NpzSource
from sagan.utils.errors import UserError


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        NpzSource(Path(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 36, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_streamed_whole(tmp_path: Path, pixels: np.ndarray, save):
    """Breaks when the stream's position and the images drift apart."""
    save(tmp_path / "a.npz", images=pixels, labels=np.array([0, 1, 2, 2, 1, 0]), class_names=["x", "y", "z"])
    source = NpzSource(tmp_path / "a.npz")
    assert (len(source), source.class_names()) == (6, ("x", "y", "z"))
    read = [item.read() for item in source.items()]
    assert np.array_equal([np.asarray(image) for image, _ in read], pixels)
    assert [label for _, label in read] == [0, 1, 2, 2, 1, 0]


def test_npz_without_labels_in_gray_and_by_position(tmp_path: Path, pixels: np.ndarray):
    """Breaks when the names of np.savez(images, labels) or the two gray layouts are not known."""
    np.savez(tmp_path / "a.npz", pixels, np.array([0, 1] * 3))
    assert NpzSource(tmp_path / "a.npz").num_classes == 2
    for gray in (pixels[..., 0], pixels[..., :1]):
        np.savez(tmp_path / "b.npz", images=gray)
        source = NpzSource(tmp_path / "b.npz")
        assert source.num_classes == 0
        assert np.array_equal(np.asarray(next(source.items()).read()[0]), pixels[0, ..., 0])


def test_npz_that_cannot_be_meant(tmp_path: Path, pixels: np.ndarray):
    """Breaks when a wrong layout is read as something else, or ends in a traceback."""
    path = tmp_path / "a.npz"
    two = np.array([0, 1] * 3)
    for arrays, message in (
        ({"x": pixels}, "no array `images`"),
        ({"images": pixels.astype(np.float32)}, "float32"),
        ({"images": pixels.transpose(0, 3, 1, 2).copy()}, "transpose it"),
        ({"images": np.asfortranarray(pixels)}, "Fortran"),
        ({"images": pixels[:0]}, "empty"),
        ({"images": pixels, "labels": two[:5]}, "one integer an image"),
        ({"images": pixels, "labels": two * 0.5}, "one integer an image"),
        ({"images": pixels, "labels": two - 1}, "from -1 to 0"),
        ({"images": pixels, "labels": two * 10**15}, "0 to 5 at most"),
        ({"images": pixels, "labels": two * 0}, "all labels are the same"),
        ({"images": pixels, "labels": two, "class_names": ["x"]}, "expected 2 strings"),
    ):
        np.savez(path, **arrays)
        assert message in refusal(path), message
    np.savez(path, images=pixels, labels=np.array([0, 2] * 3))
    assert [problem.name for problem in NpzSource(path).problems] == ["1"]


def test_npz_never_unpickles(tmp_path: Path, pixels: np.ndarray):
    """Breaks with allow_pickle: a downloaded file could run any program."""

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trap = np.array([Trap()] * 6, dtype=object)
    np.savez(tmp_path / "a.npz", images=trap)
    assert "Python objects" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=pixels, labels=trap)
    assert "Python objects" in refusal(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_npz_whose_header_lies(tmp_path: Path):
    """Breaks when memory is taken as the header says: a few bytes would ask for terabytes."""
    path = tmp_path / "a.npz"
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1024, 1024, 3), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header + len(text).to_bytes(2, "little") + text + b"\0" * 100)
    assert "does not fit its 228 bytes" in refusal(path)
    for content in (b"", b"\x93NUMPY", header + b"\xff\xff{", b"text"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
        assert "images is not a NumPy array" in refusal(path)


def test_damaged_npz(tmp_path: Path, pixels: np.ndarray):
    """Breaks when a truncated or bit-flipped archive ends in a traceback, or goes unnoticed."""
    np.savez_compressed(tmp_path / "a.npz", images=pixels)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    assert "not readable as .npz" in refusal(tmp_path / "a.npz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(flipped)
    with pytest.raises(UserError, match=r"not readable as \.npz"):
        list(NpzSource(tmp_path / "a.npz").items())

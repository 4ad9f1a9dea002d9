"""Sets of images: folders, arrays and prepared data give the same pixels, and say what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.dataset import PreparedData
from sagan.evaluation.features import from_files, from_prepared
from sagan.utils.errors import UserError
from sagan.utils.images import save_png


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), np.uint8)


def write(folder: Path, images: np.ndarray, name: str = "{:03d}.png") -> Path:
    for i, image in enumerate(images):
        save_png(folder / name.format(i), image)
    return folder


def test_a_folder_and_an_npz_give_their_pixels_in_order(images: np.ndarray, tmp_path: Path):
    """Breaks when pixels are converted, resized, or read in another order; size is (height, width)."""
    np.savez(tmp_path / "x.npz", images=images)
    for source in (write(tmp_path / "png", images), tmp_path / "x.npz"):
        found = from_files(source)
        assert (found.count, found.size, found.labels) == (6, (20, 24), None)
        assert np.array_equal(found.read(np.array([4, 1])).numpy(), images[[4, 1]])


def test_prepared_data_is_read_with_its_labels(data: PreparedData):
    """Breaks when labels or hash are not those of the manifest."""
    found = from_prepared(data)
    assert found.key == data.manifest.content_hash
    assert np.array_equal(found.read(np.array([3])).numpy(), data.images[3:4])
    assert found.labels is not None
    assert np.array_equal(found.labels, data.labels)


def test_what_sagan_sample_wrote_is_read_without_its_sheet(images: np.ndarray, tmp_path: Path):
    """Breaks when grid.png counts as a sample, or the classes in the names are not the labels."""
    for i, image in enumerate(images):
        save_png(tmp_path / f"seed{i:08d}_class{i % 3}.png", image)
    save_png(tmp_path / "grid.png", np.zeros((99, 99, 3), np.uint8))
    (tmp_path / "samples.json").write_text("{}")
    found = from_files(tmp_path)
    assert found.count == 6
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_key_follows_the_bytes(images: np.ndarray, tmp_path: Path):
    """Breaks when a changed pixel leaves the key, so that cached features of other images are taken."""
    folder = write(tmp_path, images)
    before = from_files(folder).key
    assert from_files(folder).key == before
    images[2, 0, 0, 0] ^= 1
    write(folder, images)
    assert from_files(folder).key != before


def test_a_part_is_always_the_same_and_has_a_key_of_its_own(images: np.ndarray, tmp_path: Path):
    """Breaks when a part of a set is taken for the whole, or is not the same the next time."""
    found = from_files(write(tmp_path, images))
    assert found.sample(6) is found
    part = found.sample(3)
    assert part.key != found.key
    pixels = part.read(np.arange(3)).numpy()
    assert np.array_equal(pixels, found.sample(3).read(np.arange(3)).numpy())
    assert len({image.tobytes() for image in pixels} & {image.tobytes() for image in images}) == 3
    with pytest.raises(UserError, match="7 images were asked for, it holds 6"):
        found.sample(7)


def test_a_part_of_sorted_classes_has_all_of_them(data: PreparedData):
    """Breaks when a part is the beginning: prepared folders are sorted by class."""
    found = from_prepared(data)
    order = np.argsort(data.labels, kind="stable")
    in_order = replace(found, labels=data.labels[order], read=lambda indices: found.read(order[indices]))
    part = in_order.sample(20)
    assert part.labels is not None
    assert len(set(part.labels.tolist())) == 4
    labels = {
        image.numpy().tobytes(): label
        for image, label in zip(in_order.read(np.arange(40)), data.labels[order], strict=True)
    }
    shown = part.read(np.arange(20)).numpy()
    assert [labels[image.tobytes()] for image in shown] == part.labels.tolist()


def test_lossy_files_are_known(images: np.ndarray, tmp_path: Path):
    """Breaks when JPEGs pass for lossless images."""
    assert not from_files(write(tmp_path, images)).lossy
    Image.fromarray(images[0]).save(tmp_path / "x.jpg")
    assert from_files(tmp_path).lossy


def test_mixed_sizes_are_refused_by_name(images: np.ndarray, tmp_path: Path):
    """Breaks when images are silently resized, or the message names neither file nor cure."""
    write(tmp_path, images)
    save_png(tmp_path / "zzz.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"mixed sizes, 000.png is 24x20 and zzz.png 20x20; sagan prepare"):
        from_files(tmp_path)


def test_a_damaged_image_is_named(images: np.ndarray, tmp_path: Path):
    """Breaks when a truncated file counts, or ends in a traceback."""
    folder = write(tmp_path, images)
    content = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"003.png: not readable as an image"):
        from_files(folder).read(np.arange(6))


@pytest.mark.parametrize("name", ["absent", "text.txt", "absent.npz"])
def test_anything_else_is_refused(name: str, tmp_path: Path):
    """Breaks when a source that is not there gives an empty set."""
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected a folder of images or an \.npz"):
        from_files(tmp_path / name)

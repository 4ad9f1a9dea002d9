"""Image sets of folders, arrays and prepared data, and their features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standin import register_standin

from sagan.data.dataset import PreparedData
from sagan.evaluation.extractors import Backbone, load_backbone
from sagan.evaluation.features import CHUNK, Extraction, ImageSet, extract, from_files, from_prepared
from sagan.utils.errors import UserError
from sagan.utils.images import save_png

COUNT = CHUNK + 76


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), np.uint8)


def write(folder: Path, images: np.ndarray, name: str = "{:03d}.png") -> Path:
    for i, image in enumerate(images):
        save_png(folder / name.format(i), image)
    return folder


def test_a_folder_and_an_npz_keep_pixels_and_order(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images)
    for source in (write(tmp_path / "png", images), tmp_path / "x.npz"):
        found = from_files(source)
        assert (found.count, found.size, found.labels, found.lossy) == (6, (20, 24), None, False)
        assert np.array_equal(found.read(np.array([4, 1])).numpy(), images[[4, 1]])
    Image.fromarray(images[0]).save(tmp_path / "png" / "x.jpg")
    assert from_files(tmp_path / "png").lossy


def test_prepared_data_keeps_its_labels(data: PreparedData) -> None:
    found = from_prepared(data)
    assert found.key == data.manifest.content_hash
    assert np.array_equal(found.read(np.array([3])).numpy(), data.images[3:4])
    assert found.labels is not None
    assert np.array_equal(found.labels, data.labels)


def test_folders_of_sagan_sample(images: np.ndarray, tmp_path: Path) -> None:
    """The sample grid is not a sample, and labels are in the file names."""
    for i, image in enumerate(images):
        save_png(tmp_path / f"seed{i:08d}_class{i % 3}.png", image)
    save_png(tmp_path / "grid.png", np.zeros((99, 99, 3), np.uint8))
    (tmp_path / "samples.json").write_text("{}")
    found = from_files(tmp_path)
    assert found.count == 6
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    save_png(tmp_path / "seed00000009.png", images[0])
    assert from_files(tmp_path).labels is None


def test_the_key_depends_on_the_content(images: np.ndarray, tmp_path: Path) -> None:
    folder = write(tmp_path, images)
    before = from_files(folder).key
    assert from_files(folder).key == before
    images[2, 0, 0, 0] ^= 1
    write(folder, images)
    assert from_files(folder).key != before


def test_a_subset_is_fixed_and_random(data: PreparedData) -> None:
    """Random, because prepared folders are sorted by class."""
    whole = from_prepared(data)
    order = np.argsort(data.labels, kind="stable")
    whole = replace(whole, labels=data.labels[order], read=lambda indices: from_prepared(data).read(order[indices]))
    assert whole.sample(40) is whole
    part, again = whole.sample(20), whole.sample(20)
    assert part.key == again.key != whole.key
    pixels = part.read(np.arange(20)).numpy()
    assert np.array_equal(pixels, again.read(np.arange(20)).numpy())
    assert part.labels is not None
    assert len(set(part.labels.tolist())) == 4
    label_of = {data.images[i].tobytes(): label for i, label in enumerate(data.labels)}
    assert [label_of[image.tobytes()] for image in pixels] == part.labels.tolist()
    with pytest.raises(UserError, match="41 images were asked for, it holds 40"):
        whole.sample(41)


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


def test_a_store_does_not_change_features(pixels: torch.Tensor, backbone: Backbone, tmp_path: Path) -> None:
    expected = everything(image_set(pixels), backbone, None)
    assert expected.features is not None
    assert expected.features.shape == (COUNT, 64)
    np.testing.assert_allclose(expected.statistics.mean, expected.features.astype(np.float64).mean(0), rtol=1e-9)
    extract(image_set(pixels), backbone, 64, store=tmp_path)  # without logits, which are then computed
    assert_equal(everything(image_set(pixels), backbone, tmp_path), expected)


def test_killed_extractions_resume(pixels: torch.Tensor, backbone: Backbone, tmp_path: Path) -> None:
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
def test_damaged_chunks_are_recomputed(
    pixels: torch.Tensor, backbone: Backbone, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    expected = everything(image_set(pixels), backbone, tmp_path)
    path = sorted(tmp_path.iterdir())[1]
    path.write_bytes(damage(path.read_bytes()))
    assert_equal(everything(image_set(pixels), backbone, tmp_path), expected)

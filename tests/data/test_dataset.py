"""Prepared folders: what they give, and that damage is noticed when they are opened."""

import json
from pathlib import Path

import numpy as np
import pytest

from sagan.data.dataset import Manifest, PreparedData, is_prepared
from sagan.data.prepare import prepare
from sagan.utils.errors import UserError


@pytest.fixture
def prepared(folder: Path, tmp_path: Path) -> Path:
    return prepare(str(folder), tmp_path / "prepared", 32, report=lambda line: None).folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        PreparedData.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_gather_gives_copies_in_the_order_asked_for(prepared: Path):
    """Breaks when indices are sorted, repeats dropped, or the file itself is handed out."""
    data = PreparedData.open(prepared)
    wanted = np.array([7, 0, 7, 3])
    images, labels = data.gather(wanted)
    assert (images.shape, images.dtype, labels.dtype) == ((4, 32, 32, 3), np.uint8, np.int64)
    assert type(images) is np.ndarray
    assert images.flags.c_contiguous
    assert images.flags.writeable
    for image, label, index in zip(images, labels, wanted, strict=True):
        assert np.array_equal(image, data.images[index])
        assert label == data.labels[index] == (index >= 4)
    assert isinstance(data.images, np.memmap)
    assert len(data) == 8
    with pytest.raises(IndexError):
        data.gather(np.array([8]))


def test_folders_of_something_else(tmp_path: Path, folder: Path):
    """Breaks when a folder of images, or one with a manifest of another program, passes for prepared."""
    assert not is_prepared(folder)
    (folder / "manifest.json").write_text("{}")
    assert not is_prepared(folder)
    assert "not a folder of prepared data" in refusal(folder)
    assert "not a folder of prepared data" in refusal(tmp_path / "missing")


def test_damage_is_noticed(prepared: Path):
    """Breaks when a truncated copy or edited manifest is first noticed in the middle of training, or never."""
    for name in ("images.npy", "labels.npy"):
        whole = (prepared / name).read_bytes()
        for keep in (len(whole) - 1, 130, 100, 3, 0):
            (prepared / name).write_bytes(whole[:keep])
            assert name in refusal(prepared), keep
        (prepared / name).unlink()
        assert name in refusal(prepared)
        (prepared / name).write_bytes(whole)
    PreparedData.open(prepared)

    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 1, 1, 1, 2]))
    assert "not those of the manifest" in refusal(prepared)
    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 0, 1, 1, 1]))
    assert "not those of the manifest" in refusal(prepared)
    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32))
    assert "holds int32" in refusal(prepared)


def test_damaged_manifests(prepared: Path):
    """Breaks when a manifest of another version, or with a missing or wrong entry, ends in a traceback."""
    path = prepared / "manifest.json"
    good = json.loads(path.read_text())
    for content, message in (
        ("{", "not readable as JSON"),
        ("[]", "not a manifest"),
        (json.dumps(good | {"format": 99}), "format is 99"),
        (json.dumps(good | {"count": -1}), "count"),
        (json.dumps(good | {"count": 9}), "manifest says"),
        (json.dumps(good | {"resolution": 64}), "manifest says"),
        (json.dumps({k: v for k, v in good.items() if k != "source"}), "source"),
    ):
        path.write_text(content)
        assert message in refusal(prepared)


def test_manifest_survives_its_file(prepared: Path):
    """Breaks when a field is written in a form that is not read back."""
    manifest = PreparedData.open(prepared).manifest
    assert Manifest.model_validate_json((prepared / "manifest.json").read_text()) == manifest
    assert manifest.class_names == ("cat", "dog")
    assert manifest.class_counts == (4, 4)

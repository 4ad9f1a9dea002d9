"""What SOURCE may be."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.sources import SETS, Source, open_source
from sagan.utils.errors import UserError


def opened(path: Path | str) -> Source:
    return open_source(str(path), 32)


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        opened(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_paths(folder: Path, tmp_path: Path):
    """Breaks when a kind of source is not recognised, or a mistyped path ends in a traceback."""
    np.savez(tmp_path / "a.NPZ.npz", images=np.zeros((2, 32, 32), np.uint8))
    assert len(opened(tmp_path / "a.NPZ.npz")) == 2
    assert len(opened(folder)) == 8
    assert "no such folder" in refusal(tmp_path / "missing")
    (tmp_path / "set.zip").write_text("")
    assert "unpack it" in refusal(tmp_path / "set.zip")
    assert "no .npz; give a folder" in refusal(folder / "cat" / "0.png")


def test_torchvision_sets_can_be_made():
    """Breaks when an entry names a class or an option that this torchvision does not have."""
    from torchvision import datasets

    for entry in SETS.values():
        make = inspect.signature(getattr(datasets, entry.dataset))
        for options in entry.parts:
            make.bind(root="x", **options, **({"download": True} if entry.downloads else {}))


def test_torchvision_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Breaks when labels or names are taken wrongly from torchvision. (EuroSAT, already there, is not downloaded.)"""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("Forest", "River")
    for label, name in enumerate(names):
        place = tmp_path / ".cache" / "sagan" / "torchvision" / "eurosat" / "2750" / name
        place.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (64, 64), (label, i, 0)).save(place / f"{i}.png")
    source = opened("torchvision:eurosat")
    assert (len(source), source.class_names()) == (4, names)
    read = [item.read() for item in source.items()]
    assert [(image.getpixel((0, 0)), label) for image, label in read] == [
        ((0, 0, 0), 0), ((0, 1, 0), 0), ((1, 0, 0), 1), ((1, 1, 0), 1),
    ]  # fmt: skip


def test_torchvision_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Breaks when a misspelt name or a machine without network ends in a traceback."""
    assert "did you mean cifar10?" in refusal("torchvision:cifar-10")
    assert "known: cifar10, " in refusal("torchvision:xyz")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("cifar10", "lsun-church"):
        with pytest.raises(UserError, match=rf"torchvision:{name}: could not .*\.cache/sagan/torchvision"):
            len(opened(f"torchvision:{name}"))


def test_shapes(tmp_path: Path):
    """Breaks when images and labels of the embedded set are mixed up, or its count is not checked."""
    from sagan.data.shapes import CLASSES, render_many

    source = opened("shapes:5")
    images, expected = render_many(5, 32)
    read = [item.read() for item in source.items()]
    assert (len(source), source.class_names()) == (5, CLASSES)
    assert np.array_equal([np.asarray(image) for image, _ in read], images)
    assert [label for _, label in read] == expected.tolist()
    assert source.fingerprint() != opened("shapes:6").fingerprint()
    assert len(opened("shapes")) == 20_000
    for count in ("0", "-1", "x", "1.5"):
        assert "shapes:COUNT" in refusal(f"shapes:{count}")

"""What SOURCE may be, and the mistakes in it that would otherwise be silent."""

import inspect
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.source import Source
from sagan.data.sources import open_source
from sagan.data.torchvision_sets import SETS
from sagan.errors import UserError


def opened(path: Path | str) -> Source:
    return open_source(str(path), 32)


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        opened(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def labels(source: Source) -> dict[str, int]:
    found = {}
    for item in source.items():
        image, found[item.name] = item.read()
        image.close()
    return found


# ---- folders


def test_class_folders_give_labels_in_sorted_order(folder: Path):
    """Breaks when labels follow the order in which the disk lists the folders."""
    (folder / "bird").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "bird" / "x.PNG")
    source = opened(folder)
    assert source.class_names() == ("bird", "cat", "dog")
    assert labels(source) == {"bird/x.PNG": 0} | {f"cat/{i}.png": 1 for i in range(4)} | {
        f"dog/{i}.png": 2 for i in range(4)
    }


def test_a_flat_folder_has_no_classes(folder: Path):
    """Breaks when a folder of images alone is taken for one class."""
    source = opened(folder / "cat")
    assert (source.num_classes, source.class_names(), len(source)) == (0, (), 4)


def test_files_that_are_not_images_are_counted_and_hidden_ones_ignored(folder: Path):
    """Breaks when a text file is decoded, or .DS_Store makes a report longer."""
    (folder / "notes.txt").write_text("")
    (folder / "cat" / "a.heic").write_text("")
    (folder / "cat" / ".DS_Store").write_text("")
    (folder / ".git").mkdir()
    source = opened(folder)
    assert source.ignored == ("cat/a.heic", "notes.txt")
    assert source.problems == ()


def test_one_class_folder_only(folder: Path):
    """Breaks when one folder silently means that every label is 0."""
    for i in range(4):
        (folder / "dog" / f"{i}.png").unlink()
    (folder / "dog").rmdir()
    message = refusal(folder)
    assert "one class folder only, cat" in message
    assert str(folder / "cat") in message


def test_folders_one_level_too_deep_name_the_right_path(folder: Path):
    """Breaks when SOURCE/train/<class>/ is read as classes named train and test."""
    inner = folder.parent / "set"
    inner.mkdir()
    folder.rename(inner / "train")
    assert f"the source to give is {inner / 'train'}" in refusal(inner)
    (inner / "test" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(inner / "test" / "cat" / "x.png")
    assert f"{inner / 'test'} or {inner / 'train'}" in refusal(inner)


def test_splits_are_no_classes(folder: Path):
    """Breaks when flat train and test folders become two classes."""
    (folder / "cat").rename(folder / "train")
    (folder / "dog").rename(folder / "Test")
    assert "splits, not classes" in refusal(folder)


def test_images_beside_class_folders(folder: Path):
    """Breaks when one of the two is dropped in silence."""
    Image.new("RGB", (32, 32)).save(folder / "stray.png")
    message = refusal(folder)
    assert "stray.png" in message
    assert "cat" in message


def test_what_some_class_folders_hide_is_a_problem(folder: Path):
    """Breaks when images below a class folder, or empty class folders, go unnoticed."""
    (folder / "cat" / "more").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "cat" / "more" / "x.png")
    (folder / "cow").mkdir()
    source = opened(folder)
    assert [(problem.kind, problem.name) for problem in source.problems] == [
        ("nested", "cat/more/x.png"),
        ("empty_class", "cow"),
    ]
    assert len(source) == 8


def test_nothing_there(tmp_path: Path):
    """Breaks when a mistyped path or an empty folder gets as far as training."""
    assert "no such folder" in refusal(tmp_path / "missing")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "holds no image;" in refusal(tmp_path / "a")
    (tmp_path / "a" / "data.csv").write_text("")
    assert "1 other files: data.csv" in refusal(tmp_path / "a")
    (tmp_path / "set.zip").write_text("")
    assert "unpack it" in refusal(tmp_path / "set.zip")


def test_links_may_not_leave_the_folder(folder: Path, tmp_path: Path):
    """Breaks when a link in a downloaded data set makes some private picture of this machine part of it."""
    (tmp_path / "private").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "private" / "me.png")
    (folder / "cat" / "leak.png").symlink_to(tmp_path / "private" / "me.png")
    (folder / "zebra").symlink_to(tmp_path / "private")
    (folder / "cat" / "twin.png").symlink_to(folder / "cat" / "0.png")
    (folder / "cat" / "broken.png").symlink_to(folder / "cat" / "missing.png")
    source = opened(folder)
    assert {(problem.name, problem.kind) for problem in source.problems} == {
        ("cat/leak.png", "outside"),
        ("zebra", "outside"),
        ("cat/broken.png", "undecodable"),
    }
    assert "cat/twin.png" in labels(source)


def test_links_in_a_circle_end(folder: Path):
    """Breaks when linked folders are followed at any depth."""
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "all").symlink_to(folder)
    assert len(opened(folder)) == 8


def test_odd_names_cannot_write_to_the_terminal(folder: Path):
    """Breaks when a file's name reaches terminal or JSON as it is: escape sequences, broken encodings."""
    os.rename(os.fsencode(folder / "cat" / "0.png"), os.fsencode(folder / "cat") + b"/\x1b[31m\xff.png")
    names = list(labels(opened(folder)))
    assert "cat/\\x1b[31m\\udcff.png" in names
    assert all(name.isprintable() for name in names)


def test_fingerprint_follows_the_files(folder: Path):
    """Breaks when a changed, added or renamed image would leave a stale preparation in use."""
    first = opened(folder).fingerprint()
    assert opened(folder).fingerprint() == first
    (folder / "notes.txt").write_text("")
    assert opened(folder).fingerprint() == first
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    renamed = opened(folder).fingerprint()
    os.utime(folder / "cat" / "1.png", ns=(0, 0))
    assert len({first, renamed, opened(folder).fingerprint()}) == 3


# ---- npz


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 36, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_streamed_whole(tmp_path: Path, pixels: np.ndarray, save):
    """Breaks when the stream's position and the images drift apart."""
    save(tmp_path / "a.npz", images=pixels, labels=np.array([0, 1, 2, 2, 1, 0]), class_names=["x", "y", "z"])
    source = opened(tmp_path / "a.npz")
    assert (len(source), source.class_names()) == (6, ("x", "y", "z"))
    read = [item.read() for item in source.items()]
    assert np.array_equal([np.asarray(image) for image, _ in read], pixels)
    assert [label for _, label in read] == [0, 1, 2, 2, 1, 0]


def test_npz_without_labels_in_gray_and_by_position(tmp_path: Path, pixels: np.ndarray):
    """Breaks when the names of np.savez(images, labels) or the two gray layouts are not known."""
    np.savez(tmp_path / "a.npz", pixels, np.array([0, 1] * 3))
    assert opened(tmp_path / "a.npz").num_classes == 2
    for gray in (pixels[..., 0], pixels[..., :1]):
        np.savez(tmp_path / "b.npz", images=gray)
        source = opened(tmp_path / "b.npz")
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
    assert [problem.name for problem in opened(path).problems] == ["1"]


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
        list(opened(tmp_path / "a.npz").items())


# ---- torchvision and shapes


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
    message = refusal("torchvision:cifar-10")
    assert "did you mean cifar10?" in message
    assert "stl10" in message
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

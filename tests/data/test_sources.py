"""Folders, archives and torchvision data sets, and the mistakes in them that would otherwise be silent."""

import inspect
import os
import zipfile
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
from PIL import Image

from sagan.data.shapes import CLASSES, render_many
from sagan.data.sources import SETS, FolderSource, NpzSource, Source, open_source
from sagan.utils.errors import UserError


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        len(open_source(str(path), 32))
    assert "\n" not in str(error.value)
    return str(error.value)


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


def labels(source: Source) -> dict[str, int]:
    found = {}
    for item in source.items():
        image, found[item.name] = item.read()
        image.close()
    return found


def test_class_folders_give_labels_in_sorted_order(folder: Path):
    save(folder / "bird" / "x.PNG")
    (folder / "cat" / "twin.png").symlink_to(folder / "cat" / "0.png")
    source = FolderSource(folder)
    assert source.class_names() == ("bird", "cat", "dog")
    cats = {f"cat/{name}.png": 1 for name in (*range(4), "twin")}
    assert labels(source) == {"bird/x.PNG": 0} | cats | {f"dog/{i}.png": 2 for i in range(4)}


def test_a_flat_folder_has_no_classes(folder: Path):
    source = FolderSource(folder / "cat")
    assert (source.num_classes, source.class_names(), len(source)) == (0, (), 4)


def test_other_files_are_counted_and_hidden_ones_ignored(folder: Path):
    for name in ("notes.txt", "cat/a.avif", "cat/.DS_Store"):
        (folder / name).write_text("")
    (folder / ".git").mkdir()
    source = FolderSource(folder)
    assert source.ignored == ("cat/a.avif", "notes.txt")
    assert source.problems == ()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a/1"], "{root}/a"),  # one class
        (
            ["train/cat/1", "test/cat/1", "train/dog/1"],
            "test, train are splits, not classes; give one of them, such as {root}/train",
        ),
        (["train/1", "Test/1"], "splits, not classes"),
        (["stray", "cat/1", "dog/1"], "stray.png"),
        (["a/b/c/1", "2"], "2.png"),
        ([], "holds no readable image"),
    ],
)
def test_unclear_layouts(tmp_path: Path, images: list[str], expected: str):
    root = tmp_path / "set"
    root.mkdir()
    for name in images:
        save(root / f"{name}.png")
    assert expected.format(root=root) in refusal(root)


def test_other_files_are_named_where_no_image_is(tmp_path: Path):
    (tmp_path / "data.csv").write_text("")
    assert "1 other files: data.csv" in refusal(tmp_path)


def test_problems_of_a_folder(folder: Path):
    save(folder / "cat" / "more" / "x.png")
    (folder / "cow").mkdir()
    source = FolderSource(folder)
    assert [problem[:2] for problem in source.problems] == [("nested", "cat/more/x.png"), ("empty_class", "cow")]
    assert len(source) == 8


def test_odd_names_cannot_write_to_the_terminal(folder: Path):
    os.rename(os.fsencode(folder / "cat" / "0.png"), os.fsencode(folder / "cat") + b"/\x1b[31m\xff.png")
    names = list(labels(FolderSource(folder)))
    assert "cat/\\x1b[31m\\udcff.png" in names
    assert all(name.isprintable() for name in names)


def test_the_fingerprint_follows_the_images(folder: Path):
    first = FolderSource(folder).fingerprint()
    (folder / "notes.txt").write_text("")
    assert FolderSource(folder).fingerprint() == first
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    renamed = FolderSource(folder).fingerprint()
    os.utime(folder / "cat" / "1.png", ns=(0, 0))
    assert len({first, renamed, FolderSource(folder).fingerprint()}) == 3


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 36, 3), np.uint8)


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_an_archive_is_read_whole(tmp_path: Path, pixels: np.ndarray, save_npz):
    save_npz(tmp_path / "a.NPZ.npz", images=pixels, labels=np.array([0, 1, 2, 2, 1, 0]), class_names=["x", "y", "z"])
    source = open_source(str(tmp_path / "a.NPZ.npz"), 32)
    assert (len(source), source.class_names()) == (6, ("x", "y", "z"))
    read = [item.read() for item in source.items()]
    assert np.array_equal([np.asarray(image) for image, _ in read], pixels)
    assert [label for _, label in read] == [0, 1, 2, 2, 1, 0]


def test_an_archive_without_labels_in_gray_and_by_position(tmp_path: Path, pixels: np.ndarray):
    np.savez(tmp_path / "a.npz", pixels, np.array([0, 1] * 3))
    assert NpzSource(tmp_path / "a.npz").num_classes == 2
    for gray in (pixels[..., 0], pixels[..., :1]):
        np.savez(tmp_path / "b.npz", images=gray)
        source = NpzSource(tmp_path / "b.npz")
        assert source.num_classes == 0
        assert np.array_equal(np.asarray(next(source.items()).read()[0]), pixels[0, ..., 0])


def test_wrong_archives(tmp_path: Path, pixels: np.ndarray):
    path, two = tmp_path / "a.npz", np.array([0, 1] * 3)
    for arrays, expected in (
        ({"x": pixels}, "no array `images`, only x"),
        ({"images": pixels.astype(np.float32)}, "float32"),
        ({"images": pixels.transpose(0, 3, 1, 2).copy()}, "transpose it"),
        ({"images": np.asfortranarray(pixels)}, "Fortran"),
        ({"images": pixels[:0]}, "empty"),
        ({"images": pixels, "labels": two[:5]}, "labels is int64 (5,)"),
        ({"images": pixels, "labels": two * 0.5}, "labels is float64"),
        ({"images": pixels, "labels": two - 1}, "from -1 to 0"),
        ({"images": pixels, "labels": two * 10**15}, "0 to 5 at most"),
        ({"images": pixels, "labels": two * 0}, "all labels are the same"),
        ({"images": pixels, "labels": two, "class_names": ["x"]}, "expected 2 strings"),
    ):
        np.savez(path, **arrays)
        assert expected in refusal(path), expected
    np.savez(path, images=pixels, labels=np.array([0, 2] * 3))
    assert [problem.name for problem in NpzSource(path).problems] == ["1"]


def test_damaged_archives(tmp_path: Path, pixels: np.ndarray):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not readable as .npz" in refusal(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"not readable as \.npz"):
        list(NpzSource(path).items())
    for content in (b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"text"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
        assert "images is not a NumPy array" in refusal(path)


def test_torchvision_has_the_data_sets():
    from torchvision import datasets

    for entry in SETS.values():
        make = inspect.signature(getattr(datasets, entry.dataset))
        for options in entry.parts:
            make.bind(root="x", **options, **({"download": True} if entry.downloads else {}))


def test_a_torchvision_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """EuroSAT is there already, so it is not downloaded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for label, name in enumerate(("Forest", "River")):
        place = tmp_path / ".cache" / "sagan" / "torchvision" / "eurosat" / "2750" / name
        place.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (64, 64), (label, i, 0)).save(place / f"{i}.png")
    source = open_source("torchvision:eurosat", 32)
    assert (len(source), source.class_names()) == (4, ("Forest", "River"))
    read = [item.read() for item in source.items()]
    assert [(image.getpixel((0, 0)), label) for image, label in read] == [
        ((0, 0, 0), 0), ((0, 1, 0), 0), ((1, 0, 0), 1), ((1, 1, 0), 1),
    ]  # fmt: skip


def test_torchvision_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "did you mean cifar10?" in refusal("torchvision:cifar-10")
    assert "known: cifar10, " in refusal("torchvision:xyz")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "torchvision:lsun-church: could not find it" in refusal("torchvision:lsun-church")
    place = tmp_path / ".cache" / "sagan" / "torchvision"
    for name in ("cifar10", "mnist", "svhn"):
        said = refusal(f"torchvision:{name}")
        assert said == f"torchvision:{name}: could not download it to {place}: Connection refused"


@pytest.mark.parametrize(("error", "reason"), [
    (URLError(OSError(-3, "Temporary failure in name resolution")), "Temporary failure in name resolution"),
    (URLError("timed out"), "timed out"),
    (HTTPError("http://a/b", 403, "Forbidden", Message(), None), "HTTP Error 403: Forbidden"),
    (RuntimeError("Error downloading x.gz:\nTried https://a/, got:\nHTTP Error 404: Not Found\nTried http://b/, got:\n"
                  "<urlopen error [Errno 111] Connection refused>\n"), "Connection refused"),
    (RuntimeError("The page https://drive.google.com/uc?id=1&x=2 has moved"), "The page … has moved"),
    (OSError(), "OSError"),
])  # fmt: skip
def test_errors_of_downloads_are_short(error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision import datasets

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "CIFAR10", fail)
    assert refusal("torchvision:cifar10").endswith(f"/torchvision: {reason}")


def test_shapes():
    source = open_source("shapes:5", 32)
    images, expected = render_many(5, 32)
    read = [item.read() for item in source.items()]
    assert (len(source), source.class_names()) == (5, CLASSES)
    assert np.array_equal([np.asarray(image) for image, _ in read], images)
    assert [label for _, label in read] == expected.tolist()
    assert source.fingerprint() != open_source("shapes:6", 32).fingerprint()
    assert len(open_source("shapes", 32)) == 20_000


@pytest.mark.parametrize(
    ("source", "expected"),
    [("shapes:0", "shapes:COUNT"), ("shapes:-1", "shapes:COUNT"), ("shapes:x", "shapes:COUNT"), ("nope", "no such"),
     ("set.zip", "no archive"), ("a.png", "or a folder")],
)  # fmt: skip
def test_unknown_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str):
    monkeypatch.chdir(tmp_path)
    for name in ("set.zip", "a.png"):
        Path(name).write_text("")
    assert expected in refusal(source)

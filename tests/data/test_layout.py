"""Labels from folders, from dataset.json and from tables: right, or refused, never silently wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sagan.data.prepare import prepare
from sagan.data.sources import FolderSource, open_source
from sagan.utils.errors import UserError


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = np.frombuffer(str(path).encode(), np.uint8)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def classes(source: str | Path, **options: Any) -> dict[str, str]:
    """Name -> class of every image, "" without classes."""
    found, names = {}, (opened := open_source(str(source), 32, **options)).class_names()
    assert opened.problems == ()
    for item in opened.items():
        image, label = item.read()
        found[item.name] = names[label] if names else ""
        image.close()
    assert len(found) == len(opened)
    return found


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        open_source(str(source), 32, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


NAMES = [f"{i // 4:05d}/img{i:08d}.png" for i in range(8)]


@pytest.fixture
def chunks(tmp_path: Path) -> Path:
    """Eight images in StyleGAN's folders, which are no classes."""
    save(*(tmp_path / "chunks" / name for name in NAMES))
    return tmp_path / "chunks"


def describe(folder: Path, labels: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_labels_of_dataset_json_rule(chunks: Path, tmp_path: Path):
    describe(chunks, [[name, [6, 6, 10][i % 3]] for i, name in enumerate(NAMES)])
    expected = {name: ["6", "6", "10"][i % 3] for i, name in enumerate(NAMES)}
    assert classes(chunks) == expected
    assert classes(zipped(chunks)) == expected
    save(tmp_path / "more" / "x.txt.png")
    shutil.move(chunks, tmp_path / "more" / "chunks")
    assert FolderSource(tmp_path / "more").problems[0][:2] == ("unlabelled", "x.txt.png")
    (tmp_path / "more" / "x.txt.png").unlink()
    assert classes(tmp_path / "more") == {f"chunks/{name}": label for name, label in expected.items()}
    first = FolderSource(tmp_path / "more").fingerprint()
    describe(tmp_path / "more" / "chunks", [[name, i % 2] for i, name in enumerate(NAMES)])
    assert FolderSource(tmp_path / "more").fingerprint() != first


def test_one_hot_labels_and_none(chunks: Path):
    describe(chunks, [[name, [0, 1.0] if i % 3 else [1.0, 0]] for i, name in enumerate(NAMES)])
    assert classes(chunks) == {name: "1" if i % 3 else "0" for i, name in enumerate(NAMES)}
    assert classes(describe(chunks, None)) == dict.fromkeys(NAMES, "")
    assert classes(zipped(chunks)) == dict.fromkeys(NAMES, "")


@pytest.mark.parametrize(("labels", "expected"), [
    ([1, 2, 1, "cat", 1, 2, [0, 1], 1], "6 numbers: 00000/img00000000.png 1, 00000/img00000001.png 2, 00000/img0"
     "0000002.png 1, …; 1 texts: 00000/img00000003.png 'cat'; 1 vectors of 2: 00001/img00000006.png [0, 1]"),
    ([[0.5, 0.5], *[[0, 1]] * 7], "1 of another kind: 00000/img00000000.png [0.5, 0.5]"),
    ([[1, 0, 0], *[[0, 1]] * 7], "1 vectors of 3"),
    ([0.5] * 8, "8 of another kind"),
    ([3] * 8, "all labels are the same"),
])  # fmt: skip
def test_labels_of_several_kinds(chunks: Path, labels: list, expected: str):
    assert expected in refusal(describe(chunks, [*map(list, zip(NAMES, labels, strict=True))]))


def test_names_that_do_not_match(chunks: Path, tmp_path: Path):
    pairs = [[name, i % 2] for i, name in enumerate(NAMES)]
    describe(chunks, [*pairs[:6], [NAMES[5], 0], [NAMES[0], None], ["00009/gone.png", 1]])
    for source in (chunks, zipped(chunks)):
        with pytest.raises(UserError) as error:
            prepare(str(source), tmp_path / "out", 32)
        assert "4 of its images" in str(error.value)
        assert "2 have no label: 00001/img00000006.png (has no label in dataset.json), 00001/i" in str(error.value)
        assert len(str(error.value).splitlines()) <= 5
    assert not (tmp_path / "out").exists()
    data = prepare(str(chunks), tmp_path / "out", 32, skip_bad=True)
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    skipped = [line.split("\t")[:2] for line in (tmp_path / "out" / "skipped.txt").read_text().splitlines()]
    assert skipped == [["00009/gone.png", "missing"], [NAMES[6], "unlabelled"], [NAMES[7], "unlabelled"],
                       [NAMES[5], "contradiction"]]  # fmt: skip
    assert "names no image of the source; it has a.png, the source has 0" in refusal(describe(chunks, [["a.png", 1]]))


def test_files_that_are_no_dataset_json(chunks: Path):
    for content, expected in (
        ('{"labels": [["a.png", 1]', "dataset.json: not readable as JSON"),
        ('{"labels": {"a": 1}}', "no list of pairs"),
        ("[" * 10**5, "not readable as JSON"), (b"\xff", "not UTF-8"),
    ):  # fmt: skip
        (chunks / "dataset.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        assert expected in refusal(chunks)
    (chunks / "dataset.json").write_text('{"authors": []}')  # of another tool
    assert open_source(str(chunks), 32).ignored == ("dataset.json",)
    shutil.copytree(chunks, chunks / "copy")
    assert "2 folders hold a dataset.json (copy, .)" in refusal(chunks)


NESTED = {  # folder above the classes and below them
    "class": ("", ""), "class/images": ("", "images"), "class/img/rgb": ("", "img/rgb"), "root/data/class": ("a/b", ""),
    "train/class": ("train", ""), "train/class/images": ("train", "images"),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_the_classes_are_the_level_at_which_folders_differ(tmp_path: Path, name: str):
    (above, below), root = NESTED[name], tmp_path / "set"
    for folder in ("n01", "n02", "n02-x"):
        save(*(root / above / folder / below / f"{folder}_{i}.png" for i in range(3)))
        (root / above / folder / f"{folder}_boxes.txt").write_text("")
    (root / "docs").mkdir()
    (root / "docs" / "words.txt").write_text("")
    if above:
        (root / "empty").mkdir()
    else:
        shutil.rmtree(root / "docs")
    expected = {
        (Path(above) / folder / below / f"{folder}_{i}.png").as_posix(): folder
        for folder in ("n01", "n02", "n02-x") for i in range(3)
    }  # fmt: skip
    assert classes(root) == classes(zipped(root)) == expected
    (root / above / "n03" / below).mkdir(parents=True)
    assert FolderSource(root).problems == (
        ("empty_class", f"{above}/n03".strip("/"), "a class folder without an image"),
    )


def test_tiny_imagenet_as_published(tmp_path: Path):
    root = tmp_path / "tiny-imagenet-200"
    for i in range(8):
        save(root / f"train/n0{i % 4}/images/{i}.JPEG", *(root / f"{s}/images/{i}.JPEG" for s in ("val", "test")))
    message = refusal(root)
    assert f"test, train, val are splits, not classes; give one of them, such as {root}/train" in message
    assert "val/images" not in message
    assert set(classes(root / "train").values()) == {"n00", "n01", "n02", "n03"}


@pytest.mark.parametrize(("images", "expected"), [
    (["a/images/1", "b/img/1"], "the source to give is {root}/a or {root}/b"),  # no common name
    (["a/x/1", "a/y/1", "b/x/1"], "the source to give is {root}/a or {root}/b"),
    (["train/images/1", "test/images/1"], "test, train are splits"),
    (["d/train/a/1", "d/val/a/1", "d/val/b/1"], "give one of them, such as {root}/d/train"),
    (["d/a/1", "d/2", "d/b/3"], "holds images (d/2.png) beside folders with images (a, b)"),
    (["a/images/1"], "holds one class folder only, a/images; to train without labels give {root}/a/images"),
])  # fmt: skip
def test_folders_that_are_no_classes(tmp_path: Path, images: list[str], expected: str):
    save(*(tmp_path / "set" / f"{name}.png" for name in images))
    assert expected.format(root=tmp_path / "set") in refusal(tmp_path / "set")

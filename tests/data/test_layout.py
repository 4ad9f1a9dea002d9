"""Labels from folders, from dataset.json and from tables: right, or refused, never silently wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import sagan
from PIL import Image

from sagan.config.schema import DataSettings
from sagan.data.prepare import ensure_prepared, prepare
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
    """Eight images in StyleGAN's folders, which are not classes."""
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
    assert skipped == [["00009/gone.png", "missing"], [NAMES[5], "contradiction"],
                       [NAMES[6], "unlabelled"], [NAMES[7], "unlabelled"]]  # fmt: skip
    assert "names no image of the source; it has a.png, the source has 0" in refusal(describe(chunks, [["a.png", 1]]))


def test_files_that_are_no_dataset_json(chunks: Path):
    for content, expected in (
        ('{"labels": [["a.png", 1]', "dataset.json: not readable as JSON"),
        ('{"labels": {"a": 1}}', "not a list of pairs"),
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


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Images val_0.png to val_5.png, to be labeled n01, n02, n01, …"""
    save(*(tmp_path / "val" / "images" / f"val_{i}.png" for i in range(6)))
    return tmp_path / "val"


def table(row: str, *first: str, end: str = "\n") -> str:
    return "".join(
        f"{line}{end}" for line in (*first, *(row.format(i=i, k=1 + i % 2, n=f"n0{1 + i % 2}") for i in range(6)))
    )


TABLES = {  # with classes n01, n02 or 1, 2
    "CSV": table("val_{i}.png,{n}"), "with a header": table("val_{i}.png,{n}", "image,label"),
    "labels first": table("{n},val_{i}.png", "breed,id"), "Kaggle": table("val_{i},{n}", "id,breed"),
    "numbers": table("val_{i},{k}"), "floats": table("val_{i},{k}.0", "id,y"), "quotes": table('"val_{i}.png","{n}"'),
    "TSV": table("val_{i}.png\t{n}", "file\tclass"), "spaces": table("val_{i}.png {k}"), ";": table("val_{i};{n}"),
    "Tiny-ImageNet": table("val_{i}.png\t{n}\t0\t32\t44\t62"),
    "Windows": "\ufeff" + table("val_{i},{n}", "id,x", end="\r\n"),
    "Windows without a header": table("\ufeffval_{i}.png,{n}")[:1] + table("val_{i}.png,{n}", end="\r\n"),
    "many columns": table("{i},val_{i},7,{n}", "number,file,width,class"), "folder": table("images/val_{i}.png,{n}"),
    "folders above": table("val/images/val_{i},{n}"), "backslashes": table("images\\val_{i}.png,{n}"),
    "JSON lines": table('{{"file_name": "val_{i}.png", "width": 3, "label": {k}}}'),
    "JSON lines with text": table('{{"label": "{n}", "file": "images/val_{i}"}}'),
    "dataset.json": json.dumps({"labels": [[f"images/val_{i}.png", 1 + i % 2] for i in range(6)]}, indent=1),
    "boxes": table("val_{i}.png,{n},3") + table("val_{i}.png,{n},4"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_labels(flat: Path, name: str):
    (flat / "labels.txt").write_text(TABLES[name])
    found = classes(flat, labels=str(flat / "labels.txt"))
    assert [label[-1] for label in found.values()] == list("121212")
    assert set(found.values()) in ({"n01", "n02"}, {"1", "2"})
    assert open_source(str(flat), 32, str(flat / "labels.txt")).ignored == ()
    assert classes(zipped(flat), labels=str(flat / "labels.txt")) == found


def test_columns_are_named(flat: Path, tmp_path: Path):
    (tmp_path / "t.csv").write_text(table("val_{i},{k},{n},val_{i}", "id,size,kind,other"))
    message = refusal(flat, labels=str(tmp_path / "t.csv"))
    assert "which of its columns (id, size, kind, …) is the label?" in message
    assert "--columns" in message
    found = classes(flat, labels=str(tmp_path / "t.csv"), columns="other, kind")
    assert list(found.values()) == ["n01", "n02"] * 3
    for columns, expected in (("id", "expected the names of two"), ("id,kin", "no column kin; did you mean kind?")):
        assert expected in refusal(flat, labels=str(tmp_path / "t.csv"), columns=columns)
    assert "give it by --labels" in refusal(flat, columns="id,kind")


@pytest.mark.parametrize(("text", "expected"), [
    ("", "is empty"), ("val_0.png\nval_1.png\n", "is one column"), ("a,1\nb\n", "row 2 has 1 columns, the first one 2"),
    ("a,1\nb,2\n", "names no image of the source; it has b, the source has images/val_0.png, images/val_1.png,"),
    ('{"file": "val_0"}\n[1]\n', "expected one object such as {"),
    ('{"file": "val_0", "y": 1}\n{"fi\n', "line 2: not readable as JSON"), ("\xff", "is not UTF-8"),
    (f"val_0,{'x' * 200_000}", "not readable as a table"), (table("val_{i},one"), "all labels are the same"),
    (table("val_{i},{n}").replace("n02", "7"), "has 3 texts: images/val_0.png 'n01', "),
    (table("val_{i},7,{n}", "id,a,b"), "which of its columns (id, a, b) is the label?"),
])  # fmt: skip
def test_unclear_tables(flat: Path, text: str, expected: str):
    (flat / "t.csv").write_text(text, encoding="latin-1")
    assert expected in refusal(flat, labels=str(flat / "t.csv"))


def test_names_or_captions_are_no_classes(tmp_path: Path):
    save(*(tmp_path / "set" / f"{i}.png" for i in range(120)))
    (tmp_path / "t.csv").write_text("".join(f"{i}.png,a bird with {i} feathers\n" for i in range(120)))
    assert "120 labels for 120 images; are these names or captions" in refusal(
        tmp_path / "set", labels=str(tmp_path / "t.csv")
    )


def test_names_that_fit_several_images_fit_none(tmp_path: Path):
    save(*(tmp_path / "set" / name for name in ("a/1.png", "b/1.png", "2.png", "a/2.jpg", "3.png", "4.png", "a/4.png")))
    (tmp_path / "t.csv").write_text("5,x\n1.png,x\n2.png,x\n2,y\na/2,z\n3,y\n4.png,x\na/4.png,x\n")
    source = open_source(str(tmp_path / "set"), 32, str(tmp_path / "t.csv"))
    assert [problem[:2] for problem in source.problems] == [
        ("missing", "5"), ("missing", "1.png"), ("missing", "2"), ("unlabelled", "a/1.png"), ("unlabelled", "b/1.png"),
    ]  # fmt: skip
    assert source.class_names() == ("x", "y", "z")


def test_labels_in_commands_and_configs(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = flat / "val_annotations.txt"
    labels.write_text(TABLES["Tiny-ImageNet"] + "val_9.png\tn01\t0\t0\t0\t0\n")
    assert sagan("prepare", flat, "--out", tmp_path / "out", "--labels", labels) == 2
    assert "1 have a label but no image: val_9.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert sagan("prepare", flat, "--out", tmp_path / "out", "--labels", labels, "--skip-bad") == 0
    assert "val_9.png\tmissing" in (tmp_path / "out" / "skipped.txt").read_text()
    labels.write_text(TABLES["Tiny-ImageNet"])
    settings = DataSettings(source=str(flat), labels=str(labels))
    data = ensure_prepared(settings, tmp_path / "cache")
    assert data.manifest.class_names == ("n01", "n02")
    assert data.labels.tolist() == [0, 1] * 3
    labels.write_text(TABLES["Tiny-ImageNet"].replace("val_0.png\tn01", "val_0.png\tn02"))
    again = ensure_prepared(settings, tmp_path / "cache")
    assert (again.labels.tolist(), again.folder != data.folder) == ([1, 1, 0, 1, 0, 1], True)
    (tmp_path / "c.yaml").write_text(f"data: {{source: {flat}, labels: {labels}}}\n")
    capsys.readouterr()
    assert sagan("train", tmp_path / "c.yaml", "--dry-run") == 0
    assert "num_classes: 2" in capsys.readouterr().out
    for source in ("shapes:8", "torchvision:cifar10"):
        assert "has its own labels" in refusal(source, labels=str(labels))
    for path, expected in ((tmp_path / "no.csv", "no such file"), (flat, "is not a file")):
        assert expected in refusal(flat, labels=str(path))

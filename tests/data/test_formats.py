"""Every command in the table of formats of docs/data.md prepares what the row says."""

import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import sagan
from PIL import Image

DOCS = Path(__file__).parent.parent.parent / "docs" / "data.md"
ROWS = re.findall(r"^\| `(sagan prepare [^`]+)` \|", DOCS.read_text(), re.MULTILINE)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
NAMES = [f"{i // 3}/{i}.png" for i in range(6)]
CLASSES = ["cat", "dog"] * 3


def save(folder: str, names: list[str] = NAMES) -> Path:
    for name, pixels in zip(names, PIXELS, strict=True):
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(folder) / name)
    return Path(folder)


def pets(folder: str = "pets") -> Path:
    return save(folder, [f"{name}/{i}.png" for i, name in enumerate(CLASSES)])


def stylegan() -> None:
    text = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(NAMES)]})
    (save("ffhq") / "dataset.json").write_text(text)


def tiny_imagenet() -> None:
    lines = "".join(f"{i}.png\t{name}\t0\t0\t31\t31\n" for i, name in enumerate(CLASSES))
    (save("val", [f"images/{i}.png" for i in range(6)]) / "val_annotations.txt").write_text(lines)


def shards() -> None:
    save("flat", [f"{i}.png" for i in range(6)])
    for number in range(4):
        with tarfile.open(f"shards-{number:03d}.tar", "w") as archive:
            for i in {0: [0, 1], 1: [2, 3], 2: [4], 3: [5]}[number]:
                Path("label").write_text(CLASSES[i])
                archive.add(f"flat/{i}.png", f"{i}.png")
                archive.add("label", f"{i}.cls")


def rows():
    datasets = pytest.importorskip("datasets", reason="needs pip install 'sagan[hub]'")
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    data = datasets.Dataset.from_dict({"image": [*map(Image.fromarray, PIXELS)], "label": [0, 1] * 3})
    return data.cast_column("image", datasets.Image()).cast_column("label", kinds)


def torchvision() -> None:
    pets("home/.cache/sagan/torchvision/eurosat/2750")


MAKE: dict[str, tuple[Callable[[], object], list[str]]] = {  # by source: what makes it, and the classes by pixels
    "photos": (lambda: save("photos", [f"{i}.png" for i in range(6)]), []),
    "pets": (lambda: pets(), CLASSES),
    "ffhq": (stylegan, ["0", "1"] * 3),
    "val": (tiny_imagenet, CLASSES),
    "pets.zip": (lambda: shutil.make_archive("pets", "zip", pets()), CLASSES),
    "pets.tar.gz/train": (
        lambda: (pets("a/train"), pets("a/test"), shutil.make_archive("pets", "gztar", "a")),
        CLASSES,
    ),
    "shards-{000..003}.tar": (shards, CLASSES),
    "faces.npz": (lambda: np.savez("faces.npz", images=PIXELS, labels=[0, 1] * 3, class_names=["cat", "dog"]), CLASSES),
    "saved": (lambda: rows().save_to_disk("saved"), CLASSES),
    "a.parquet": (lambda: rows().to_parquet("a.parquet"), CLASSES),
    "hf:USER/NAME:CONFIG@train": (lambda: None, CLASSES),  # a stand-in
    "shapes:100": (lambda: None, []),
    "torchvision:eurosat": (torchvision, CLASSES),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_format(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = shlex.split(row)
    if command[2] == "shapes:100":
        assert sagan(*command[1:], "--out", "out") == 0
        assert json.loads(Path("out/manifest.json").read_text())["count"] == 100
        return
    make, classes = MAKE[command[2]]
    make()
    if command[2].startswith("hf:"):
        data = rows().to_iterable_dataset()
        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": data})
    assert sagan(*command[1:], "--out", "out") == 0
    images, labels = np.load("out/images.npy"), np.load("out/labels.npy")
    names = json.loads(Path("out/manifest.json").read_text())["class_names"]
    found = {image.tobytes(): names[label] if names else "" for image, label in zip(images, labels, strict=True)}
    assert found == {pixels.tobytes(): classes[i] if classes else "" for i, pixels in enumerate(PIXELS)}


def test_the_table_is_whole():
    assert {shlex.split(row)[2] for row in ROWS} == set(MAKE)

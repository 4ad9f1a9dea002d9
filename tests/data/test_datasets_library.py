"""Data sets of the library `datasets`: saved to disk, as parquet files, and, by a stand-in, from the Hub."""

import io
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry as fsspec_registry
from PIL import Image

from sagan.data.prepare import prepare
from sagan.data.sources import open_source
from sagan.utils.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs pip install 'sagan[hub]'")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
NUMBERS = [0, 1, 1, 0, 2, 0]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return tmp_path


def rows(labels: Any = NUMBERS, feature: Any = None, **more: list) -> Any:
    """A data set of the six images."""
    feature = feature or datasets.ClassLabel(names=["cat", "dog", "cow"])
    data = datasets.Dataset.from_dict({"picture": [*map(Image.fromarray, PIXELS)], "kind": labels, **more})
    return data.cast_column("picture", datasets.Image()).cast_column("kind", feature)


def read(source: str, columns: str | None = None) -> list[str]:
    """The classes of the images, whose pixels are checked."""
    opened = open_source(source, 32, columns=columns)
    names, items = opened.class_names(), [item.read() for item in opened.items()]
    assert np.array_equal([np.asarray(image) for image, _ in items], PIXELS)
    assert len(opened) == len(items)
    return [names[label] if names else "" for _, label in items]


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        open_source(source, 32, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


KINDS = ["cat", "dog", "dog", "cat", "cow", "cat"]


def test_saved_and_parquet(place: Path):
    rows().save_to_disk("saved", num_shards=2)
    datasets.DatasetDict({"train": rows(), "test": rows(NUMBERS[::-1])}).save_to_disk("splits")
    rows().to_parquet("a.parquet")
    for split in ("train", "test"):
        rows().to_parquet(f"repository/data/{split}-00000-of-00001.parquet")
    for source in ("saved", "hf:saved", "splits", "hf:splits@train", "a.parquet", "hf:a.parquet", "hf:repository@test"):
        assert read(source) == KINDS, source
    assert read("hf:splits@test") == KINDS[::-1]
    data = prepare("hf:splits@test", "out", 32)
    assert (data.manifest.class_names, data.manifest.source) == (("cat", "dog", "cow"), "hf:splits@test")
    assert np.array_equal(data.images, PIXELS)
    assert str(place) not in (place / "out" / "manifest.json").read_text()
    first = open_source("a.parquet", 32).fingerprint()
    rows(NUMBERS[::-1]).to_parquet("a.parquet")
    assert open_source("a.parquet", 32).fingerprint() != first
    assert "has no split tset, but " in refusal("hf:splits@tset")
    datasets.DatasetDict({"a": rows(), "b": rows()}).save_to_disk("others")
    assert "has no split train, but a, b; give one" in refusal("others").replace("b, a", "a, b")


@pytest.mark.parametrize(("labels", "kind", "expected"), [
    (["x", "z", "z", "x", "y", "x"], "string", ["x", "z", "z", "x", "y", "x"]),
    ([7, 9, 9, 7, 8, 7], "int64", ["7", "9", "9", "7", "8", "7"]), ([False, True] * 3, "bool", ["False", "True"] * 3),
])  # fmt: skip
def test_labels_that_are_no_classes_of_the_library(labels: list, kind: str, expected: list[str]):
    rows(labels, datasets.Value(kind)).rename_column("kind", "Label").to_parquet("a.parquet")
    assert read("a.parquet") == expected


def test_columns_are_found_or_named():
    two = rows(fine=NUMBERS[::-1], other=["x"] * 6).cast_column("fine", datasets.ClassLabel(names=["a", "b", "c"]))
    two.to_parquet("a.parquet")
    assert "which of its columns (picture, kind, fine, …) are images and which labels? Name" in refusal("a.parquet")
    assert read("a.parquet", "picture,kind") == KINDS
    assert read("a.parquet", "picture, fine") == [["a", "b", "c"][i] for i in NUMBERS[::-1]]
    assert read("a.parquet", "picture") == [""] * 6
    assert "has no column 'kin'; did you mean kind?" in refusal("a.parquet", columns="picture,kin")
    assert "all labels are the same" in refusal("a.parquet", columns="picture,other")
    assert "--columns IMAGE,LABEL" in refusal("a.parquet", labels="x.csv")
    rows().remove_columns("kind").to_parquet("b.parquet")
    assert read("b.parquet") == [""] * 6


def test_parquet_of_other_tools():
    """Encoded images as plain bytes."""
    encoded = []
    for pixels in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    parquet.write_table(pa.table({"jpg": encoded, "target": KINDS}), "a.parquet")
    assert read("a.parquet") == KINDS
    parquet.write_table(
        pa.table({"img": [{"bytes": e, "path": "x.png"} for e in encoded], "label": NUMBERS}), "b.parquet"
    )
    assert read("b.parquet") == [str(number) for number in NUMBERS]


def test_rows_that_cannot_be_used(place: Path):
    Image.fromarray(PIXELS[0]).save("secret.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    odd = [{"bytes": None, "path": str(place / "secret.png")}, {"bytes": b"x", "path": None}]
    odd += [{"bytes": None, "path": f"file://{place}/secret.png::hf://a"}]
    table = {"image": [*odd, *rows()["picture"]], "label": [0, 1, 2, None, *NUMBERS[1:]]}
    # to_parquet would put the content of the file in
    parquet.write_table(datasets.Dataset.from_dict(table, features=features).data.table, "a.parquet")
    prepare("a.parquet", "out", 32, skip_bad=True)
    assert (place / "out" / "skipped.txt").read_text().splitlines() == [
        "image 0\tundecodable\ta row without an image", "image 1\tundecodable\tnot an image",
        "image 2\tundecodable\ta row without an image", "image 3\tunlabelled\thas no label",
    ]  # fmt: skip


def test_the_hub_by_a_stand_in(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(name: str, config: str | None, *, streaming: bool) -> dict[str, Any]:
        asked.append((name, config, streaming))
        return {"train": rows().to_iterable_dataset(), "test": rows(NUMBERS[::-1]).to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hf:user/pets") == KINDS
    assert read("hf:user/pets:small@test") == KINDS[::-1]
    assert asked == [("user/pets", None, True), ("user/pets", "small", True)]
    assert open_source("hf:user/pets:small@test", 32).name == "hf:user/pets:small@test"

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'user/pets' on the Hub (https://huggingface.co/x)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert refusal("hf:user/pets") == "hf:user/pets: could not be read: Couldn't reach 'user/pets' on the Hub …"


def test_rows_that_name_files_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    """As in folders of images there."""
    memory = fsspec.filesystem("memory")
    data = datasets.Dataset.from_dict({"image": [f"hf://datasets/a/{i}.png" for i in range(6)], "label": NUMBERS})
    for i, pixels in enumerate(PIXELS):
        with memory.open(f"/datasets/a/{i}.png", "wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
    strip = staticmethod(lambda path: path.removeprefix("hf:/"))
    hub = type("Hub", (type(memory),), {"protocol": "hf", "_strip_protocol": strip})
    monkeypatch.setitem(fsspec_registry, "hf", hub)
    data = data.cast_column("image", datasets.Image()).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": data})
    assert read("hf:a/b") == [str(number) for number in NUMBERS]


def test_mistakes(monkeypatch: pytest.MonkeyPatch):
    for text in ("hf:", "hf:a:b:c", "hf:a@b@c"):
        assert "expected hf:NAME" in refusal(text)
    rows().to_parquet("a.parquet")
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes()[:-20])
    assert "a.parquet: could not be read: " in refusal("a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs the library datasets: pip install 'sagan[hub]'" in refusal("a.parquet")

"""Damaged and altered files of every kind give a value or one line: no traceback, no warning, little memory."""

import contextlib
import json
import resource
import shutil
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import LENGTHS, altered_json, damaged, fuzzing, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sagan.config.load import load_config
from sagan.data.dataset import PreparedData
from sagan.data.decode import Unusable, convert, decode
from sagan.data.files import FORMATS
from sagan.data.sources import Item, NpzSource
from sagan.evaluation.extractors import load_tensors
from sagan.evaluation.fid import load_statistics
from sagan.experiments.runs import read_runs
from sagan.models.hub import read_tensors
from sagan.runs.checkpoint import verify_checkpoint
from sagan.runs.importers import read_network, translate
from sagan.runs.snapshot import load_snapshot
from sagan.sampling.writer import read_npz

PEERS = Path(__file__).parents[1] / "runs" / "peers"
MOST_MEMORY = 700 << 10  # KiB by which the process may grow
Read = Callable[[Path], object]


def read_source(path: Path) -> None:
    """An .npz as preparation reads it."""
    source = NpzSource(path)
    for item in source.items():
        assert item.read()[0].size
    assert len(source.class_names()) == source.num_classes


def read_image(path: Path) -> None:
    """An image as preparation and evaluation read it."""
    item = Item(path.name, lambda: (Image.open(path, formats=FORMATS), 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        for read in (partial(convert, resolution=32, resize="crop"), decode):
            with contextlib.suppress(Unusable):
                read(item)


FILES: dict[str, tuple[str, Read]] = {  # name -> (file, its reader)
    "config": ("c.yaml", load_config),
    "run's config": ("run/config.yaml", load_config),
    "manifest": ("data/manifest.json", lambda path: PreparedData.open(path.parent)),
    "images": ("data/images.npy", lambda path: PreparedData.open(path.parent)),
    "labels": ("data/labels.npy", lambda path: PreparedData.open(path.parent)),
    "snapshot's config": ("snapshot/config.json", lambda path: load_snapshot(path.parent)),
    "snapshot's tensors": ("snapshot/model.safetensors", lambda path: load_snapshot(path.parent)),
    "optimiser": ("run/checkpoints/00000002/generator_optimizer.safetensors", read_tensors),
    "checkpoint's state": ("run/checkpoints/00000002/state.json", lambda path: verify_checkpoint(path.parent)),
    "run's record": ("run/run.json", lambda path: read_runs([path.parent])),
    "log": ("run/log.jsonl", lambda path: read_runs([path.parent])),
    "scores": ("run/metrics.jsonl", lambda path: read_runs([path.parent])),
    "statistics": ("statistics.npz", load_statistics),
    "statistics of others": ("others.npz", load_statistics),
    "data .npz": ("stored.npz", read_source),
    "data .npz, packed": ("packed.npz", read_source),
    "samples .npz": ("samples_npz/samples.npz", read_npz),
    "weights": ("weights.pth", load_tensors),
    "old weights": ("old.pth", load_tensors),
    "another project's": ("theirs.pth", lambda path: translate(read_network(path, "generator"), {})),
    **{f"{suffix} image": (f"image.{suffix}", read_image) for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp")},
}
JSON = ("manifest", "snapshot's config", "checkpoint's state", "run's record", "scores")


@pytest.fixture(scope="module")
def files(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file of every kind."""
    root = tmp_path_factory.mktemp("fuzz") / "files"
    shutil.copytree(sound, root)
    rng = np.random.default_rng(0)
    images, matrix = rng.integers(256, size=(4, 10, 9, 3)).astype(np.uint8), rng.normal(size=(3, 9))
    named = {"images": images, "labels": np.array([0, 1, 0, 1]), "class_names": np.array(["a", "b"])}
    np.savez(root / "stored.npz", **named)
    np.savez_compressed(root / "packed.npz", **named)
    np.savez(root / "others.npz", mu=matrix[:, 0], sigma=np.cov(matrix))
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(3), "c": torch.randn(2).half()}
    torch.save(tensors, root / "weights.pth")
    with zipfile.ZipFile(PEERS / "tfhub-biggan.zip") as archive:
        (root / "theirs.pth").write_bytes(archive.read("biggan-32.pth"))
    torch.save(tensors, root / "old.pth", _use_new_zipfile_serialization=False)
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        Image.fromarray(images[0].repeat(5, 0).repeat(5, 1)).save(root / f"image.{suffix}")
    scores = [{"step": step, "fid": 20.0 - step, "protocol": {"num": 10}, "warnings": ["few"]} for step in (1, 2)]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    return root


def fuzz(root: Path, name: str, inputs: Callable[[bytes], st.SearchStrategy[bytes]], examples: int) -> None:
    """Read the file of kind `name` in `examples` damaged forms; it is whole again afterwards."""
    place, read = FILES[name]
    path = root / place
    whole, before = path.read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @fuzzing(examples)
    @given(inputs(whole))
    def run(content: bytes) -> None:
        path.write_bytes(content)
        taken_or_refused(lambda: read(path))

    try:
        read(path)
        run()
    finally:
        path.write_bytes(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


def altered(content: bytes) -> st.SearchStrategy[bytes]:
    """JSON, or the lines of a .jsonl, one of them altered."""
    lines: list[Any] = [json.loads(line) for line in (content.splitlines() if content[:2] != b"{\n" else [content])]
    return st.sampled_from(range(len(lines))).flatmap(
        lambda i: altered_json(lines[i]).map(
            lambda one: b"\n".join([*(json.dumps(line).encode() for line in lines[:i]), one, b""])
        )
    )


@LENGTHS
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(files: Path, name: str, examples: int) -> None:
    fuzz(files, name, damaged, examples)


@LENGTHS
@pytest.mark.parametrize("name", JSON)
def test_altered_json(files: Path, name: str, examples: int) -> None:
    fuzz(files, name, altered, examples)

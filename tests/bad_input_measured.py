"""What is broken of evaluation and comparison: statistics, weights, images, scored runs. In the working folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import sagan
from evaluate import random_weights
from PIL import Image
from standin import register_standin
from torch import Tensor
from torchvision.models import alexnet

from sagan.evaluation.fid import Statistics, load_statistics, save_statistics

STEP = "00000002"
CHECKPOINTS = Path("home/.cache/torch/hub/checkpoints")
CACHED = "weights-inception-2015-12-05-6726825d.pth"  # not the one that is published


class _Evil:
    """Makes the folder EXECUTED when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.mkdir, (Path("EXECUTED"),)  # type: ignore[return-value]


def build_for_evaluation() -> None:
    """Everything that the cases of bad_input_evaluation.py name; `data`, `run` and `samples` are there already."""
    register_standin()
    _images()
    _weights()
    _statistics()
    _runs()
    labels = {"images": np.zeros((10, 32, 32, 3), np.uint8), "labels": np.arange(10) % 5}
    np.savez("images/many_classes.npz", **labels)  # type: ignore[arg-type]
    shutil.copytree("snapshot", "snapshot_not_shapes")
    config = json.loads(Path("snapshot/config.json").read_text())
    Path("snapshot_not_shapes/config.json").write_text(json.dumps(config | {"class_names": ["a", "b", "c", "d"]}))


def _images() -> None:
    rng = np.random.default_rng(0)
    for name, sizes in {
        "same": [40] * 3,
        "mixed": [40, 40, 48],
        "small": [24] * 3,
        "one": [40],
        "tiny": [8] * 3,
    }.items():
        for number, size in enumerate(sizes):
            _image(f"images/{name}/{number}.png", rng.integers(256, size=(size, size, 3)).astype(np.uint8))
    for number in range(3):
        _image(f"images/wide/{number}.png", rng.integers(256, size=(20, 40, 3)).astype(np.uint8))
    for name in ("a/0", "a/1", "b/0"):
        _image(f"images/alone/{name}.png", rng.integers(256, size=(32, 32, 3)).astype(np.uint8))
    shutil.copytree("images/same", "images/cut")
    _cut(Path("images/cut/1.png"), 1000)
    images = rng.integers(256, size=(4, 32, 32, 3)).astype(np.uint8)
    np.savez("images/two_classes.npz", images=images, labels=np.array([0, 0, 1, 1]))
    for source, name in {"alone": "alone", "two_classes.npz": "two", "same": "plain", "one": "one"}.items():
        assert sagan("prepare", f"images/{source}", "--out", f"images/prepared_{name}") == 0
    for name in ("folder.png", "folder.onnx"):
        Path(f"images/{name}").mkdir()


def _weights() -> None:
    """Of real networks the names and shapes alone: a tensor of one number, expanded, takes no room in a file."""
    inception, trunk = random_weights(0), alexnet().state_dict()
    for name, content in {
        "list": [torch.zeros(2)], "words": {"a": "b"}, "other": {"a": torch.zeros(2)},
        "nan": {"a": torch.tensor([1.0, torch.nan])}, "pickle": {"a": _Evil()},
        "inception_empty": _of_one_number(inception, 0), "inception_huge": _of_one_number(inception, 1e20),
        "alexnet": _of_one_number(trunk, 0),
        "alexnet_other": _of_one_number(trunk, 0) | {"features.0.weight": torch.zeros(2)},
    }.items():  # fmt: skip
        Path("weights").mkdir(exist_ok=True)
        torch.save(content, f"weights/{name}.pth")
    CHECKPOINTS.mkdir(parents=True)
    (CHECKPOINTS / CACHED).write_bytes(b"an error page of a proxy")


def _of_one_number(tensors: dict[str, Tensor], number: float) -> dict[str, Tensor]:
    numbers = {torch.float32: torch.tensor(number, dtype=torch.float32), torch.int64: torch.tensor(0)}
    return {name: numbers[tensor.dtype].expand(tensor.shape) for name, tensor in tensors.items()}


def _statistics() -> None:
    """`stats/whole.npz` is what `sagan stats` writes, the others differ from it."""
    assert sagan("stats", "data", "--out", "stats/whole.npz", "--backbone", register_standin()) == 0
    whole, about = load_statistics(Path("stats/whole.npz"))
    mean, covariance = whole.mean, whole.covariance
    few = Statistics(whole.count, mean[:8], covariance[:8, :8])
    for name, (statistics, changes) in {
        "other_backbone": (whole, {"backbone": "dinov2-vit-b-14"}), "other_size": (whole, {"size": [64, 64]}),
        "other_weights": (whole, {"backbone_sha256": "0" * 64}), "fewer_features": (few, {}),
        "nan": (Statistics(whole.count, mean * np.nan, covariance), {}),
        "of_one": (Statistics(1, mean, covariance), {}),
        "huge": (Statistics(whole.count, mean + 1e200, covariance), {}),
        "no_covariance": (Statistics(whole.count, mean, np.triu(covariance) - np.eye(len(mean))), {}),
    }.items():  # fmt: skip
        save_statistics(Path(f"stats/{name}.npz"), statistics, about | changes)
    for name, arrays in {
        "pickle": {"mu": np.array([_Evil()]), "sigma": covariance}, "mean_alone": {"mean": mean},
        "halves": {"mu": mean[:8], "sigma": covariance},
    }.items():  # fmt: skip
        np.savez(f"stats/{name}.npz", **arrays)  # type: ignore[arg-type]
    with np.load("stats/whole.npz", allow_pickle=False) as arrays:
        np.savez("stats/changed.npz", **{**arrays, "mean": mean + 1e-9})
    content = bytearray(Path("stats/whole.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path("stats/flipped.npz").write_bytes(content)
    Path("stats/cut.npz").write_bytes(content[:1000])


def _runs() -> None:
    best = ["--set=evaluate.every=1", "--set=evaluate.num=8", "--set=evaluate.metrics=[coherence]"]
    assert sagan("train", "c.yaml", "--out", "run_best", *best, "--set=evaluate.best=two_objects") == 0
    for step in Path("run_best/snapshots").iterdir():
        shutil.rmtree(step)
    scored = {"step": 2, "fid": 20.0}
    for name, change in {
        "scored": {}, "word_score": {"fid": "low"}, "nan_score": {"fid": float("nan")}, "word_step": {"step": "two"},
        "word_protocol": {"protocol": "usual"}, "word_warnings": {"warnings": "none"},
    }.items():  # fmt: skip
        _scored_run(f"run_{name}", scored, json.dumps(scored | change))
    _scored_run("run_cut_score", scored, json.dumps(scored)[:-5])
    _scored_run("run_list_score", scored, "[1]")
    (Path(shutil.copytree("run", "run_latin_score")) / "metrics.jsonl").write_bytes("für".encode("latin-1"))
    shutil.copytree("run", "run_cut_sheet")
    _cut(Path(f"run_cut_sheet/samples/{STEP}.png"), 50)
    Path("run_bare").mkdir()
    shutil.copy("run/config.yaml", "run_bare")
    shutil.copytree("run", "run_not_resolved")
    Path("run_not_resolved/config.yaml").write_text("{}")
    assert sagan("compare", "run_scored", "--out", "comparison.png") == 0  # matplotlib makes its cache


def _scored_run(name: str, first: dict[str, Any], second: str) -> None:
    shutil.copytree("run", name)
    Path(f"{name}/metrics.jsonl").write_text(f"{json.dumps(first)}\n{second}\n")


def _image(name: str, pixels: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])

"""A folder with data, runs, snapshots and images that are damaged in the ways that users damage them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from command_line import sagan
from PIL import Image
from safetensors.torch import load_file, save_file
from standin import random_weights, register_standin
from tiny import TINY, tiny_config
from torch import Tensor
from torchvision.models import alexnet

from sagan.models.generator import build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot

STEP = "00000002"
SNAPSHOTS = {  # name -> settings and number of classes
    "no_attention": ("generator.attention={}", 4),
    "unconditional": ("data.num_classes=0", 0),
    "snapshot_channels": ("generator.attention={8: squeeze_excitation}", 4),
}


def build_workspace() -> None:
    """Fill the working folder."""
    tiny = TINY | {"data": {"source": "data"}, "training": TINY["training"] | {"steps": 2, "batch_size": 4}}
    Path("c.yaml").write_text(yaml.safe_dump(tiny))
    Path("wide.yaml").write_text(yaml.safe_dump(tiny | {"generator": TINY["generator"] | {"channels": 4}}))
    Path("bad.yaml").write_text("a: [")
    Path("a_file").write_text("mine")
    sagan_does("prepare shapes:64 --out data")
    sagan_does("prepare shapes:8 --out data_64 --resolution 64")
    sagan_does("train c.yaml --out run")
    shutil.copytree(f"run/snapshots/{STEP}", "snapshot")
    for name, (setting, classes) in SNAPSHOTS.items():
        save_snapshot(remove_spectral_norm(build_generator(tiny_config(setting), classes)), name)
    sagan_does("sample snapshot --out samples --num 2")
    sagan_does("sample snapshot --out samples_npz --num 2 --npz")
    _sources()
    _images()
    _weights()
    _statistics()
    for source, changes in DAMAGE.items():
        for name, damage in changes.items():
            damage(Path(shutil.copytree(source, f"{source}_{name}")))
    for cache in ("data", "torchvision"):  # made when they are needed, if they are not there
        Path(f"home/.cache/sagan/{cache}").mkdir(parents=True)
    sagan_does("compare run --out comparison.png")  # matplotlib makes its cache


def sagan_does(command: str) -> None:
    assert sagan(*command.split()) == 0


def _sources() -> None:
    for name in ("noise/disc/1", "noise/square/1", "pair/a/1", "pair/b/1"):
        _image(f"src/{name}.png", np.zeros((40, 40, 3), np.uint8))
    Path("src/empty").mkdir()
    Path("src/noise/square/2.png").write_text("no image")
    sagan_does("prepare src/pair --out pair_data")
    shutil.copy("src/pair/b/1.png", "src/pair/b/2.png")
    Path("src/broken.npz").write_text("PK")
    np.savez("src/nameless.npz", x=np.zeros(2))


def _images() -> None:
    rng = np.random.default_rng(0)
    sizes = {"same": [40] * 3, "mixed": [40, 40, 48], "small": [24] * 3, "one": [40], "tiny": [8] * 3}
    shapes = {f"{name}/{i}": (side, side) for name, sides in sizes.items() for i, side in enumerate(sides)}
    shapes |= {"alone/a/0": (32, 32), "alone/a/1": (32, 32), "alone/b/0": (32, 32)}
    for name, shape in shapes.items():
        _image(f"images/{name}.png", rng.integers(256, size=(*shape, 3)).astype(np.uint8))
    shutil.copytree("images/same", "images/cut")
    _cut(Path("images/cut/1.png"), 1000)
    images = rng.integers(256, size=(10, 32, 32, 3)).astype(np.uint8)
    np.savez("images/two_classes.npz", images=images[:4], labels=np.array([0, 0, 1, 1]))
    np.savez("images/many_classes.npz", images=images, labels=np.arange(10) % 5)
    for source, name in {"alone": "alone", "two_classes.npz": "two", "one": "one"}.items():
        sagan_does(f"prepare images/{source} --out images/prepared_{name}")
    for name in ("folder.png", "folder.onnx"):
        Path(f"images/{name}").mkdir()


def _weights() -> None:
    """With the names and shapes of real networks: an expanded tensor of one number takes no room in a file."""
    inception, trunk = random_weights(0), alexnet().state_dict()
    Path("weights").mkdir()
    for name, content in {
        "other": {"a": torch.zeros(2)}, "inception_empty": _of_one_number(inception, 0),
        "inception_huge": _of_one_number(inception, 1e20), "alexnet": _of_one_number(trunk, 0),
    }.items():  # fmt: skip
        torch.save(content, f"weights/{name}.pth")
    cache = Path("home/.cache/torch/hub/checkpoints")
    cache.mkdir(parents=True)
    (cache / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"an error page of a proxy")


def _of_one_number(tensors: dict[str, Tensor], number: float) -> dict[str, Tensor]:
    numbers = {torch.float32: torch.tensor(number, dtype=torch.float32), torch.int64: torch.tensor(0)}
    return {name: numbers[tensor.dtype].expand(tensor.shape) for name, tensor in tensors.items()}


def _statistics() -> None:
    sagan_does(f"stats data --out stats/whole.npz --backbone {register_standin()}")
    content = bytearray(Path("stats/whole.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path("stats/flipped.npz").write_bytes(content)


def _image(name: str, pixels: np.ndarray) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _overflow(snapshot: Path) -> None:
    tensors = load_file(snapshot / "model.safetensors")
    for part in ("query", "key"):
        tensors[f"attention.8x8.{part}.weight"].fill_(3e38)
    save_file(tensors, snapshot / "model.safetensors")


def _widen(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["generator"]["channels"] = 4
    (run / "config.yaml").write_text(yaml.safe_dump(config))


DAMAGE: dict[str, dict[str, Callable[[Path], object]]] = {  # thing -> suffix of a copy -> its damage
    "data": {
        "truncated": lambda data: _cut(data / "images.npy", 1000),
    },
    "run": {
        "wide": _widen,
        "locked": lambda run: None,
        "no_record": lambda run: (run / "run.json").unlink(),
        "cut_record": lambda run: _cut(run / "run.json", 20),
        "other_data": lambda run: _edit(run / "run.json", content_hash="0" * 64),
        "cut_checkpoint": lambda run: _cut(run / "checkpoints" / STEP / "generator.safetensors", 1000),
        "no_snapshot": lambda run: shutil.rmtree(run / "snapshots" / STEP),
        "linked": lambda run: (run / "metrics.jsonl").symlink_to("../elsewhere"),
        "cut_score": lambda run: (run / "metrics.jsonl").write_text('{"step": 2, "fid": 20.0}\n{"step": 2, "fi'),
        "cut_grid": lambda run: _cut(run / "samples" / f"{STEP}.png", 50),
        "not_resolved": lambda run: (run / "config.yaml").write_text("{}"),
    },
    "snapshot": {
        "truncated": lambda s: _cut(s / "model.safetensors", 1000),
        "not_shapes": lambda s: _edit(s / "config.json", class_names=["a", "b", "c", "d"]),
        "huge_weights": _overflow,
    },
    "samples": {
        "unknown": lambda s: (s / "samples.json").unlink(),
        "broken": lambda s: (_cut(s / "seed00000001.png", 50), (s / "samples.npz").write_bytes(b"PK")),
    },
}

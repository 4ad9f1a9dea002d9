"""A folder of things that are broken in the ways users break them. Shared by the tests of the command line."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bad_input_ablation import build_ablations
from bad_input_measured import build_for_evaluation
from command_line import sagan
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import TINY

STEP = "00000002"


def build_workspace() -> None:
    """Prepared data, runs of two steps, and broken variants of all that commands are given, in the working folder."""
    tiny = TINY | {"data": {"source": "data"}, "training": TINY["training"] | {"steps": 2, "batch_size": 4}}
    _write("c.yaml", yaml.safe_dump(tiny))
    assert sagan("prepare", "shapes:64", "--out", "data") == 0
    assert sagan("train", "c.yaml", "--out", "run") == 0
    shutil.copytree(f"run/snapshots/{STEP}", "snapshot")
    no_attention = [f"--set={name}.attention={{}}" for name in ("generator", "discriminator")]
    assert sagan("train", "c.yaml", "--out", "no_attention", *no_attention) == 0
    assert sagan("train", "c.yaml", "--out", "run_unconditional", "--set=data.num_classes=0") == 0
    channels = "--set=generator.attention={8: squeeze_excitation}"
    assert sagan("train", "c.yaml", "--out", "run_channels", channels) == 0
    shutil.copytree(f"run_channels/snapshots/{STEP}", "snapshot_channels")
    assert sagan("prepare", "shapes:8", "--out", "data_64", "--resolution", "64") == 0
    assert sagan("sample", "snapshot", "--out", "samples", "--num", "2") == 0
    assert sagan("sample", "snapshot", "--out", "samples_npz", "--num", "2", "--npz") == 0
    _broken_configs()
    _broken_sources()
    _broken_data()
    _broken_runs(tiny)
    _broken_snapshots()
    build_for_evaluation()
    build_ablations()
    Path("a_file").write_text("mine")
    for cache in ("data", "torchvision"):  # made when they are needed, if they are not there
        Path(f"home/.cache/sagan/{cache}").mkdir(parents=True)


def _broken_configs() -> None:
    for name, text in {
        "list": "- 1\n- 2", "text": "hello", "bracket": "a: [", "tag": "!!python/object:os.system {}", "nul": "a: \0",
        "date": "seed: 2001-99-99", "long_number": "seed: " + "9" * 5000, "loop": "data: &x {a: *x}",
        "number_key": "1: 2", "huge": "#" * 300_000,
    }.items():  # fmt: skip
        _write(f"bad/{name}.yaml", text)
    Path("bad/latin.yaml").write_bytes("seed: 1 # für".encode("latin-1"))


def _broken_sources() -> None:
    for name in ("one_class/a/1", "deep/a/x/1", "deep/a/y/1", "beside/1", "beside/a/1", "splits/train/1",
                 "splits/test/1", "hole/a/1", "hole/b/1", "noise/a/1", "noise/b/1", "clear/a/1", "clear/b/1",
                 "pair/a/1", "pair/b/1", "half/a/1"):  # fmt: skip
        _image(f"src/{name}.png", mode="RGBA" if name == "clear/a/1" else "RGB")
    for name in ("empty", "hole/c"):
        Path(f"src/{name}").mkdir()
    _write("src/words/read.me", "no image")
    for name in ("noise/b/2", "half/b/1", "bad/a/1", "bad/b/1"):
        _write(f"src/{name}.png", "no image either")
    assert sagan("prepare", "src/pair", "--out", "pair_data") == 0
    _image("src/pair/b/2.png", "RGB")
    _write("src/archive.zip", "")
    _write("src/broken.npz", "PK")
    images = np.zeros((2, 40, 40, 3), np.uint8)
    for name, arrays in {
        "nameless": {"x": images}, "float": {"images": images / 2},
        "odd_labels": {"images": images, "labels": [0, 1, 2]},
        "high_labels": {"images": images, "labels": [0, 9]}, "one_label": {"images": images, "labels": [0, 0]},
        "none": {"images": images[:0]}, "fortran": {"images": np.asfortranarray(images)},
        "pickle": {"images": np.array([{}, {}])}, "names": {"images": images, "labels": [0, 1], "class_names": ["a"]},
    }.items():  # fmt: skip
        np.savez(f"src/{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()})  # type: ignore[arg-type]
    np.savez_compressed("src/trap.npz", images=images, labels=np.zeros(10_000_000, np.int64))
    with zipfile.ZipFile("src/one_label.npz") as whole:
        header = whole.read("images.npy")[:328]
    for name, member in (("no_array", b"hello"), ("short", header)):
        with zipfile.ZipFile(f"src/{name}.npz", "w") as archive:
            archive.writestr("images.npy", member)


def _broken_data() -> None:
    for name, breakage in {
        "truncated": lambda data: _cut(data / "images.npy", 1000),
        "relabelled": lambda data: np.save(data / "labels.npy", np.zeros(64, np.int64)),
        "resized": lambda data: np.save(data / "images.npy", np.zeros((3, 32, 32, 3), np.uint8)),
        "newer": lambda data: _edit(data / "manifest.json", format=99),
        "odd": lambda data: _edit(data / "manifest.json", count="many"),
        "json": lambda data: _cut(data / "manifest.json", 20),
    }.items():
        breakage(_copy("data", f"data_{name}"))


def _broken_runs(tiny: dict[str, Any]) -> None:
    _write("wide.yaml", yaml.safe_dump(tiny | {"generator": TINY["generator"] | {"channels": 4}}))
    wide = _copy("run", "run_wide")
    config = yaml.safe_load((wide / "config.yaml").read_text())
    config["generator"]["channels"] = 4
    (wide / "config.yaml").write_text(yaml.safe_dump(config))
    (_copy("run", "run_no_record") / "run.json").unlink()
    (_copy("run", "run_list_record") / "run.json").write_text("[]")
    _cut(_copy("run", "run_cut_record") / "run.json", 20)
    _edit(_copy("run", "run_other_data") / "run.json", content_hash="0" * 64)
    _cut(_copy("run", "run_cut_checkpoint") / "checkpoints" / STEP / "generator.safetensors", 1000)
    shutil.rmtree(_copy("run", "run_no_snapshot") / "snapshots" / STEP)
    _copy("run", "run_locked")
    (_copy("run", "run_linked") / "metrics.jsonl").symlink_to("../elsewhere")


def _broken_snapshots() -> None:
    def breaking(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
        def change_tensors(snapshot: Path) -> None:
            tensors = load_file(snapshot / "model.safetensors")
            change(tensors)
            save_file(tensors, snapshot / "model.safetensors")

        return change_tensors

    for name, breakage in {
        "truncated": lambda s: _cut(s / "model.safetensors", 1000),
        "emptied": lambda s: _cut(s / "model.safetensors", 0),
        "other_weights": lambda s: (s / "model.safetensors").write_bytes(b"\x80\x02" * 500),
        "weightless": lambda s: (s / "model.safetensors").unlink(),
        "other_kind": lambda s: (s / "config.json").write_text('{"model_type": "bert"}'),
        "list": lambda s: (s / "config.json").write_text("[]"),
        "cut_config": lambda s: _cut(s / "config.json", 20),
        "no_generator": lambda s: (s / "config.json").write_text('{"format": "sagan-generator-1"}'),
        "resolution": lambda s: _edit(s / "config.json", resolution=48),
        "minus_classes": lambda s: _edit(s / "config.json", num_classes=-1),
        "classes": lambda s: _edit(s / "config.json", num_classes=7, class_names=[]),
        "odd_names": lambda s: _edit(s / "config.json", class_names=["\x1b[2J", "b", "c", "d"]),
        "few_names": lambda s: _edit(s / "config.json", class_names=["a"]),
        "whole_numbers": breaking(lambda t: t.update({"conv.bias": t["conv.bias"].long()})),
        "reshaped": breaking(lambda t: t.update({"conv.bias": t["conv.bias"][:2]})),
        "without_one": breaking(lambda t: t.pop("conv.bias")),
        "with_more": breaking(lambda t: t.update(more=t["conv.bias"].clone())),
        "nan": breaking(lambda t: t["conv.bias"].fill_(float("nan"))),
        "huge_weights": breaking(
            lambda t: [t[f"attention.8x8.{part}.weight"].fill_(3e38) for part in ("query", "key")]
        ),
    }.items():
        breakage(_copy("snapshot", f"snapshot_{name}"))
    (_copy("samples", "samples_unknown") / "samples.json").unlink()
    broken = _copy("samples", "samples_broken")
    _cut(broken / "seed00000001.png", 50)
    (broken / "samples.npz").write_bytes(b"PK")


def _write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def _image(name: str, mode: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (40, 40)).save(name)


def _copy(source: str, name: str) -> Path:
    return shutil.copytree(source, Path(name))


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

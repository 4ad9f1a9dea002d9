"""A malicious pickle wherever a file is read: it does not run, the command says one clear thing and writes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import traps
from conftest import STEP
from refusals import assert_refused, attempt
from standin import NAME, register_standin
from torchvision.datasets import CIFAR10

from sagan.evaluation.features import _read as read_cached_features
from sagan.evaluation.features import _stored

IMAGES = np.zeros((4, 40, 40, 3), np.uint8)
TAG = "!!python/object/apply:os.mkdir [SPRUNG]"
RESUME = "train c.yaml --out run_trap --set training.steps=4 --set training.sample_every=1000"
HUB = "home/.cache/torch/hub/checkpoints"


class Reader(NamedTuple):
    """A file that some command reads: where it lies, hostile content, the command, and what it must say.

    `copy`: (sound thing, its name with the trap), copied before.
    """

    name: str
    path: str
    content: Callable[[], bytes]
    command: str
    says: str
    copy: tuple[str, str] | None = None


def snapshot(name: str, path: str, content: Callable[[], bytes], says: str) -> Reader:
    return Reader(name, f"trap/{path}", content, "sample trap --out out --num 2", says, ("snapshot", "trap"))


def prepared(name: str, path: str, content: Callable[[], bytes], says: str) -> Reader:
    command = "train c.yaml --out out --set data.source=trap"
    return Reader(name, f"trap/{path}", content, command, says, ("data", "trap"))


def arrays(name: str, content: Callable[[], bytes], says: str) -> Reader:
    return Reader(name, "trap.npz", content, "prepare trap.npz --out out", says)


def statistics(name: str, content: Callable[[], bytes], says: str) -> Reader:
    return Reader(name, "trap.npz", content, f"evaluate data --reference trap.npz --backbone {NAME}", says)


def samples(name: str, path: str, content: Callable[[], bytes], says: str, options: str = "") -> Reader:
    source = "samples_npz" if "--npz" in options else "samples"
    command = f"sample snapshot --out trap --num 2 {options}"
    return Reader(name, f"trap/{path}", content, command, says, (source, "trap"))


def weights(name: str, content: Callable[[], bytes], options: str, says: str) -> Reader:
    return Reader(name, "trap.pth", content, f"evaluate pets --reference data {options}", says)


def run(name: str, path: str, content: Callable[[], bytes], command: str, says: str) -> Reader:
    return Reader(name, f"run_trap/{path}", content, command, says, ("run", "run_trap"))


NOT_TENSORS = "damaged, truncated, or not a file of tensors only; nothing was executed"
NOT_SAFE = "model.safetensors: missing, damaged, or not a safetensors file"
READERS = [
    Reader("config: pickle", "trap.yaml", traps.raw, "train trap.yaml --out out", "trap.yaml: not readable"),
    Reader("config: YAML tag", "trap.yaml", lambda: f"seed: {TAG}".encode(), "train trap.yaml --out out",
           "not readable as YAML: could not determine a constructor for the tag"),
    Reader("--set: YAML tag", "x", bytes, f"train c.yaml --out out --set 'seed={TAG}'", "not readable as YAML"),
    Reader("--vary: YAML tag", "x", bytes, f"ablate c.yaml --out out --vary 'seed={TAG}'", "--vary"),
    prepared("manifest", "manifest.json", traps.raw, "trap/manifest.json: not readable as JSON"),
    prepared("images.npy: objects", "images.npy", traps.npy, "images.npy: missing, truncated or damaged"),
    prepared("images.npy: pickle", "images.npy", traps.raw, "images.npy: missing, truncated or damaged"),
    prepared("labels.npy: objects", "labels.npy", traps.npy, "labels.npy: missing, truncated or damaged"),
    prepared("labels.npy: pickle", "labels.npy", traps.raw, "labels.npy: missing, truncated or damaged"),
    arrays("data .npz: pickle", traps.raw, "trap.npz: not readable as .npz"),
    arrays("data .npz: images", lambda: traps.npz(images=None), "images holds Python objects, which are not read"),
    arrays("data .npz: labels", lambda: traps.npz(images=IMAGES, labels=None), "labels holds Python objects"),
    arrays("data .npz: names", lambda: traps.npz(images=IMAGES, labels=[0, 1, 0, 1], class_names=None),
           "class_names holds Python objects"),
    Reader("image", "pets/dog/1.png", traps.raw, "prepare pets --out out", "1 do not decode: dog/1.png"),
    Reader("image to be measured", "pets/dog/1.png", traps.raw, f"evaluate pets --reference data --backbone {NAME}",
           "dog/1.png: not readable as an image"),
    Reader("measured .npz", "trap.npz", lambda: traps.npz(images=None),
           f"evaluate trap.npz --reference data --backbone {NAME}", "images holds Python objects"),
    snapshot("snapshot: pickle", "model.safetensors", traps.raw, NOT_SAFE),
    snapshot("snapshot: torch.save", "model.safetensors", traps.torch_file, NOT_SAFE),
    snapshot("snapshot: old torch.save", "model.safetensors", lambda: traps.torch_file(legacy=True), NOT_SAFE),
    snapshot("snapshot: config", "config.json", traps.raw, "trap/config.json: not readable as JSON"),
    Reader("--init-from", "trap/model.safetensors", traps.raw, "train c.yaml --out out --init-from trap", NOT_SAFE,
           ("snapshot", "trap")),
    Reader("attend", "trap/model.safetensors", traps.raw, "attend trap --out out", NOT_SAFE, ("snapshot", "trap")),
    Reader("export", "trap/model.safetensors", traps.raw, "export trap --out out.pt2", NOT_SAFE, ("snapshot", "trap")),
    run("run: config", "config.yaml", traps.raw, RESUME, "run_trap/config.yaml: not readable"),
    run("run: record", "run.json", traps.raw, RESUME, "run_trap/run.json: not readable as JSON"),
    run("checkpoint: tensors", f"checkpoints/{STEP}/generator.safetensors", traps.torch_file,
        "evaluate run_trap --modes --metrics coherence", "no whole checkpoint"),
    run("checkpoint: state", f"checkpoints/{STEP}/state.json", traps.raw,
        "evaluate run_trap --modes --metrics coherence", "no whole checkpoint"),
    run("scores", "metrics.jsonl", lambda: traps.raw(0), "compare run_trap", "metrics.jsonl: line 1 is damaged"),
    run("log", "log.jsonl", traps.raw, "compare run_trap", "log.jsonl: not readable"),
    run("sheet", f"samples/{STEP}.png", traps.raw, "compare run_trap --out out.png", "not readable as an image"),
    run("run: record without fields", "run.json", lambda: b"[]", "evaluate run_trap --modes --metrics coherence",
        "not the record of a run"),
    samples("samples: record", "samples.json", traps.raw, "trap/samples.json: not readable as JSON"),
    samples("samples: image", "seed00000001.png", traps.raw, "not readable as an image", "--grid"),
    samples("samples: .npz", "samples.npz", lambda: traps.npz(images=None, seeds=[0, 1], labels=[0, 1]),
            "samples.npz: not readable as samples", "--npz"),
    samples("samples: pickled seeds", "samples.npz", lambda: traps.npz(images=IMAGES[:2], seeds=None, labels=[0, 1]),
            "samples.npz: not readable as samples", "--npz"),
    samples("samples: pickle", "samples.npz", traps.raw, "samples.npz: not readable as samples", "--npz"),
    samples("samples: .npy", "samples.npz", traps.npy, "samples.npz: not readable as samples", "--npz"),
    statistics("statistics: mu", lambda: traps.npz(mu=None, sigma=np.eye(4)), "not readable as statistics"),
    statistics("statistics: ours", lambda: traps.npz(mean=None, covariance=None, count=None, about=None, sha256=None),
               "not readable as statistics"),
    statistics("statistics: pickle", traps.raw, "trap.npz: not readable as .npz"),
    *(
        weights(f"weights: {option}, {kind}", content, f"{option} trap.pth {more}", NOT_TENSORS)
        for option, more in (("--inception-weights", ""), ("--backbone-weights", "--backbone vgg16"),
                             ("--lpips-weights", "--metrics lpips_diversity"),
                             ("--lpips-weights", "--metrics lpips_diversity --lpips vgg"),
                             ("--vgg16-weights", f"--metrics precision --backbone {NAME}"))
        for kind, content in (("pickle", traps.raw), ("torch.save", traps.torch_file),
                              ("old torch.save", lambda: traps.torch_file(legacy=True)))
    ),
    weights("weights: CLIP", traps.raw, "--backbone clip-rn50 --backbone-weights trap.pth", "only the official one is"),
    Reader("weights: cached Inception", f"{HUB}/weights-inception-2015-12-05-6726825d.pth", traps.torch_file,
           "evaluate pets --reference data", "not the official file"),
    Reader("weights: cached trunk of LPIPS", f"{HUB}/alexnet-owt-7be5be79.pth", traps.torch_file,
           "evaluate pets --metrics lpips_diversity", "not the official file"),
    Reader("torchvision: CIFAR-10", "home/.cache/sagan/torchvision/cifar-10-batches-py/data_batch_1", traps.raw,
           "prepare torchvision:cifar10 --out out", "torchvision:cifar10: could not download"),
    Reader("torchvision: LSUN", "_cache_lsun", traps.raw, "prepare torchvision:lsun --out out",
           "_cache_lsun: torchvision would unpickle this file"),
    Reader("ablation", "trap/ablation.json", traps.raw,
           "ablate c.yaml --out trap --vary loss.r1=0,1 --set evaluate.every=2 --set evaluate.metrics=[coherence]",
           "trap/ablation.json: not readable as JSON"),
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_pickle_is_never_run(reader: Reader, place: Path) -> None:
    register_standin()
    if reader.copy is not None:
        shutil.copytree(*reader.copy)
    trap = Path(reader.path)
    before = trap.read_bytes() if trap.is_file() else None
    trap.parent.mkdir(parents=True, exist_ok=True)
    trap.write_bytes(reader.content())
    try:
        assert_refused(reader.command, reader.says, place)
        assert not Path(traps.SPRUNG).exists()
    finally:
        trap.unlink()
        if before is not None:
            trap.write_bytes(before)
        for name in ("trap", "run_trap", "out", traps.SPRUNG):
            shutil.rmtree(name, ignore_errors=True)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_traps_would_spring(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(traps.raw(protocol))
    assert Path(traps.SPRUNG).is_dir()
    Path(traps.SPRUNG).rmdir()
    Path("a.npy").write_bytes(traps.npy())
    np.load("a.npy", allow_pickle=True)
    assert Path(traps.SPRUNG).is_dir()


def test_checkpoints_with_right_checksums(place: Path) -> None:
    shutil.copytree("run", "run_trap")
    traps.checkpoint(Path(f"run_trap/checkpoints/{STEP}"), "average.safetensors")
    try:
        assert_refused("evaluate run_trap --modes --metrics coherence", "not a safetensors file", place)
        assert not Path(traps.SPRUNG).exists()
    finally:
        shutil.rmtree("run_trap")


def test_caches_are_made_anew(place: Path) -> None:
    folder = place / "home/.cache/sagan/features/x"
    (folder / "partial").mkdir(parents=True)
    for name in ("statistics.npz", "features.npy", "features.json", "partial/00000000-00000003.npz"):
        (folder / name).write_bytes(traps.raw() if name.endswith("json") else traps.npz(features=None, mu=None))
    assert _stored(folder / "partial", np.arange(4), logits=False) is None
    assert read_cached_features(folder, {}, features=True) is None
    assert not Path(traps.SPRUNG).exists()
    shutil.rmtree(folder)


def test_cifar_is_opened_by_its_checksum_alone(place: Path) -> None:
    folder = place / "home/.cache/sagan/torchvision" / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)), CIFAR10.meta["filename"]]:
        (folder / name).write_bytes(traps.raw())
    code, message, _ = attempt("prepare torchvision:cifar10 --out out", place)
    assert (code, Path(traps.SPRUNG).exists()) == (2, False), message
    shutil.rmtree(folder)

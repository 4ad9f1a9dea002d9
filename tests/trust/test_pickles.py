"""A malicious pickle in every file that is read: it does not run, the command gives one message and writes nothing."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import traps
from refusals import assert_refused, attempt
from standin import NAME, register_standin
from torchvision.datasets import CIFAR10

from sagan.evaluation.features import _read as read_cached_features
from sagan.evaluation.features import _stored

IMAGES = np.zeros((4, 40, 40, 3), np.uint8)
TAG = "!!python/object/apply:os.mkdir [SPRUNG]"
CHECKPOINT = "run/checkpoints/00000002"
HUB = "home/.cache/torch/hub/checkpoints"
PREPARED = "train c.yaml --out out --set data.source=trap"
RESUME = "train c.yaml --out trap --set training.steps=4 --set training.sample_every=1000"
MODES = "evaluate trap --modes --metrics coherence"
SAMPLE = "sample trap --out out --num 2"
SAMPLE_NPZ = "sample snapshot --out trap --num 2 --npz"
ARRAYS = "prepare trap.npz --out out"
IMAGE = f"evaluate pets --reference data --backbone {NAME}"
STATISTICS = f"evaluate data --reference trap.npz --backbone {NAME}"
ABLATE = "ablate c.yaml --out trap --vary loss.r1=0,1 --set evaluate.every=2 --set evaluate.metrics=[coherence]"
CONTENTS: dict[str, Callable[[], bytes]] = {
    "pickle": traps.raw,
    "npy": traps.npy,
    "torch.save": traps.torch_file,
    "old torch.save": partial(traps.torch_file, legacy=True),
    "tag": lambda: f"seed: {TAG}".encode(),
    "images": partial(traps.npz, images=None),
    "labels": partial(traps.npz, images=IMAGES, labels=None),
    "names": partial(traps.npz, images=IMAGES, labels=[0, 1, 0, 1], class_names=None),
    "samples": partial(traps.npz, images=None, seeds=[0, 1], labels=[0, 1]),
    "seeds": partial(traps.npz, images=IMAGES[:2], seeds=None, labels=[0, 1]),
    "mu": partial(traps.npz, mu=None, sigma=np.eye(4)),
    "statistics": partial(traps.npz, mean=None, covariance=None, count=None, about=None, sha256=None),
}
READERS = [  # (file, content, command that reads it); a file of run/, data/ … is put into a copy called trap
    ("trap.yaml", "pickle", "train trap.yaml --out out"),
    ("trap.yaml", "tag", "train trap.yaml --out out"),
    ("--set", "tag", f"train c.yaml --out out --set 'seed={TAG}'"),
    ("--vary", "tag", f"ablate c.yaml --out out --vary 'seed={TAG}'"),
    ("data/manifest.json", "pickle", PREPARED),
    *((f"data/{name}.npy", kind, PREPARED) for name in ("images", "labels") for kind in ("npy", "pickle")),
    *(("trap.npz", kind, ARRAYS) for kind in ("pickle", "images", "labels", "names")),
    ("pets/dog/1.png", "pickle", "prepare trap --out out"),
    ("pets/dog/1.png", "pickle", IMAGE.replace("pets", "trap")),
    ("trap.npz", "images", f"evaluate trap.npz --reference data --backbone {NAME}"),
    *(("snapshot/model.safetensors", kind, SAMPLE) for kind in ("pickle", "torch.save", "old torch.save")),
    ("snapshot/config.json", "pickle", SAMPLE),
    ("snapshot/model.safetensors", "pickle", "train c.yaml --out out --init-from trap"),
    ("snapshot/model.safetensors", "pickle", "attend trap --out out"),
    ("snapshot/model.safetensors", "pickle", "export trap --out out.pt2"),
    ("run/config.yaml", "pickle", RESUME),
    ("run/run.json", "pickle", RESUME),
    (f"{CHECKPOINT}/generator.safetensors", "torch.save", MODES),
    (f"{CHECKPOINT}/state.json", "pickle", MODES),
    ("run/metrics.jsonl", "pickle", "compare trap"),
    ("run/log.jsonl", "pickle", "compare trap"),
    ("run/samples/00000002.png", "pickle", "compare trap --out out.png"),
    ("samples/samples.json", "pickle", "sample snapshot --out trap --num 2"),
    ("samples/seed00000001.png", "pickle", "sample snapshot --out trap --num 2 --grid"),
    *(("samples_npz/samples.npz", kind, SAMPLE_NPZ) for kind in ("samples", "seeds", "pickle", "npy")),
    *(("trap.npz", kind, STATISTICS) for kind in ("mu", "statistics", "pickle")),
    *(
        ("trap.pth", kind, f"evaluate pets --reference data {options}")
        for options in ("--inception-weights trap.pth", "--backbone-weights trap.pth --backbone vgg16",
                        "--lpips-weights trap.pth --metrics lpips_diversity",
                        "--lpips-weights trap.pth --metrics lpips_diversity --lpips vgg",
                        f"--vgg16-weights trap.pth --metrics precision --backbone {NAME}",
                        "--backbone-weights trap.pth --backbone clip-rn50")
        for kind in ("pickle", "torch.save", "old torch.save")
    ),
    (f"{HUB}/weights-inception-2015-12-05-6726825d.pth", "torch.save", "evaluate pets --reference data"),
    (f"{HUB}/alexnet-owt-7be5be79.pth", "torch.save", "evaluate pets --metrics lpips_diversity"),
    *(("trap.pth", kind, f"import {options} --out out") for kind in ("pickle", "torch.save", "old torch.save")
      for options in ("trap.pth", "trap.pth --discriminator trap.pth")),
    ("_cache_lsun", "pickle", "prepare torchvision:lsun --out out"),
    ("trap/ablation.json", "pickle", ABLATE),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content", "command"), READERS)
def test_a_pickle_is_never_run(file: str, content: str, command: str, place: Path) -> None:
    register_standin()
    source, _, rest = file.partition("/")
    path = Path(file)
    if rest and source in ("data", "pets", "run", "samples", "samples_npz", "snapshot"):
        path = Path(shutil.copytree(source, "trap")) / rest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENTS[content]())
    try:
        assert_refused(command, path.name, place)
        assert not Path(traps.SPRUNG).exists()
    finally:
        path.unlink()
        for name in ("trap", "out", traps.SPRUNG):
            shutil.rmtree(name, ignore_errors=True)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_traps_would_spring(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above prove something: whoever does unpickle makes the folder."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(traps.raw(protocol))
    assert Path(traps.SPRUNG).is_dir()
    Path(traps.SPRUNG).rmdir()
    Path("a.npy").write_bytes(traps.npy())
    np.load("a.npy", allow_pickle=True)
    assert Path(traps.SPRUNG).is_dir()


def test_checkpoints_with_right_checksums(place: Path) -> None:
    """Whoever plants a file can write its checksum, too."""
    shutil.copytree("run", "trap")
    traps.checkpoint(Path("trap/checkpoints/00000002"), "average.safetensors")
    try:
        assert_refused(MODES, "not a safetensors file", place)
        assert not Path(traps.SPRUNG).exists()
    finally:
        shutil.rmtree("trap")


def test_planted_features_in_a_cache_are_neither_run_nor_used(place: Path) -> None:
    folder = place / "home/.cache/sagan/features/x"
    (folder / "partial").mkdir(parents=True)
    for name in ("statistics.npz", "features.npy", "features.json", "partial/00000000-00000003.npz"):
        (folder / name).write_bytes(traps.raw() if name.endswith("json") else traps.npz(features=None, mu=None))
    assert _stored(folder / "partial", np.arange(4), logits=False) is None
    assert read_cached_features(folder, {}, features=True) is None
    assert not Path(traps.SPRUNG).exists()
    shutil.rmtree(folder)


def test_files_of_cifar_need_their_checksums(place: Path) -> None:
    """torchvision unpickles them after that."""
    folder = place / "home/.cache/sagan/torchvision" / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)), CIFAR10.meta["filename"]]:
        (folder / name).write_bytes(traps.raw())
    code, message, _ = attempt("prepare torchvision:cifar10 --out out", place)
    assert (code, Path(traps.SPRUNG).exists()) == (2, False), message
    shutil.rmtree(folder)

"""A folder with small sound things of every kind, in which hostile files are planted. It is the working folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from command_line import cut_off, sagan
from PIL import Image
from standin import register_standin
from tiny import TINY

STEP = "00000002"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a run of two steps, its snapshot, samples, statistics, a folder of images; nothing hostile."""
    root = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HOME", str(root / "home"))
        AcceleratorState._reset_state(reset_partial_state=True)
        tiny = TINY | {"data": {"source": "data"}, "training": TINY["training"] | {"steps": 2, "batch_size": 4}}
        Path("c.yaml").write_text(yaml.safe_dump(tiny))
        assert sagan("prepare", "shapes:40", "--out", "data") == 0
        assert sagan("train", "c.yaml", "--out", "run") == 0
        shutil.copytree(f"run/snapshots/{STEP}", "snapshot")
        assert sagan("sample", "snapshot", "--out", "samples", "--num", "2") == 0
        assert sagan("sample", "snapshot", "--out", "samples_npz", "--num", "2", "--npz") == 0
        assert sagan("stats", "data", "--out", "statistics.npz", "--backbone", register_standin()) == 0
        assert sagan("compare", "run", "--out", "comparison.png") == 0  # matplotlib makes its cache
        for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
            Path(f"pets/{name}").parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(len(name)).integers(256, size=(40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(f"pets/{name}.png")
        for cache in ("data", "torchvision", "features"):  # made when they are needed, if they are not there
            Path(f"home/.cache/sagan/{cache}").mkdir(parents=True, exist_ok=True)
    return root


@pytest.fixture(scope="module")
def place(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of it as working folder and home, without a network."""
    root = tmp_path_factory.mktemp("place") / "work"
    shutil.copytree(sound, root)
    with cut_off(root):
        yield root

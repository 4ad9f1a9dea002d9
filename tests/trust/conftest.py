"""A folder with small intact things of every kind, in which hostile files are planted. It is the working folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import cut_off, sagan
from PIL import Image
from standin import register_standin
from tiny import TINY


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a run of two steps, its snapshot, samples, statistics, a folder of images."""
    root = tmp_path_factory.mktemp("sound")
    with cut_off(root):
        tiny = TINY | {"data": {"source": "data"}, "training": TINY["training"] | {"steps": 2, "batch_size": 4}}
        Path("c.yaml").write_text(yaml.safe_dump(tiny))
        for command in (
            "prepare shapes:40 --out data",
            "train c.yaml --out run",
            "sample run --out samples --num 2",
            "sample run --out samples_npz --num 2 --npz",
            f"stats data --out statistics.npz --backbone {register_standin()}",
            "compare run --out comparison.png",  # matplotlib makes its cache
        ):
            assert sagan(*command.split()) == 0
        shutil.copytree("run/snapshots/00000002", "snapshot")
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

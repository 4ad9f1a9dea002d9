"""The same command in two processes gives the same bytes, with `deterministic: true` and, on the CPU, without it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from command_line import sagan
from tiny import files_of, log_of, write_config

from sagan.data.dataset import PreparedData

SETTINGS = {"plain": "deterministic=false", "deterministic": "deterministic=true"}  # the latter stays on in a process
EVERYTHING = {  # that draws, adds up, or scatters: attention that moves, all augmentations, a penalty, scores
    "discriminator": {"attention": {8: {"name": "em_attention", "bases": 3}, 16: "augmented_conv"}},
    "augment": {"policy": ["color", "translation", "cutout"]},
    "loss": {"r1": 1.0},
    "training": {"steps": 2, "batch_size": 4, "sample_every": 1, "snapshot_every": 1, "checkpoint_every": 1},
    "evaluate": {"every": 1, "num": 8, "metrics": ["coherence"]},
}


def train_all(place: Path) -> None:
    """Train the runs of SETTINGS in this process."""
    torch.set_num_threads(1)
    for name, setting in SETTINGS.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        assert sagan("train", place / "config.yaml", "--out", place / name, "--set", setting) == 0


@pytest.fixture(scope="module")
def places(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two folders with the runs of SETTINGS, one trained by this process and one by another."""
    here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
    for place in (here, there):
        write_config(place / "config.yaml", data, **EVERYTHING)
    threads = torch.get_num_threads()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, __file__, str(there)], env=environment, stderr=subprocess.PIPE) as other:
        train_all(here)
        _, stderr = other.communicate()
    assert other.returncode == 0, stderr[-2000:]
    yield [here, there]
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("run", SETTINGS)
@pytest.mark.parametrize("kind", ["checkpoints", "snapshots", "samples"])
def test_two_processes_write_the_same_bytes(places: list[Path], run: str, kind: str) -> None:
    """Weights depend on nothing but config and data; no file holds a date, a path or the name of a machine."""
    first, second = (files_of(place / run / kind) for place in places)
    assert first.keys() == second.keys()
    assert len(first) >= 2
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.parametrize("run", SETTINGS)
def test_two_processes_log_the_same(places: list[Path], run: str) -> None:
    first, second = (place / run for place in places)
    assert log_of(first) == log_of(second)
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))

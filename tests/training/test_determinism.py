"""The same command in two processes gives the same bytes, with `deterministic: true` and, on the CPU, without it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from command_line import sagan
from processes import start
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


@pytest.fixture(scope="module")
def places(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two folders with the runs of SETTINGS, one trained by this process and one by others."""
    here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
    config, threads = write_config(here / "config.yaml", data, **EVERYTHING), torch.get_num_threads()
    others = [start(config, there / name, there / f"{name}.txt", "--set", value) for name, value in SETTINGS.items()]
    torch.set_num_threads(1)
    for name, setting in SETTINGS.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        assert sagan("train", config, "--out", here / name, "--set", setting) == 0
    for process in others:
        process.join(timeout=120)
    assert [process.exitcode for process in others] == [0, 0]
    yield [here, there]
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.slow
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

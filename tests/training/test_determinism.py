"""The same command in two processes gives the same bytes, with `deterministic: true` and, on the CPU, without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import files_of, log_of, write_config

from sagan.data.dataset import PreparedData

SETTINGS = {"plain": "deterministic=false", "deterministic": "deterministic=true"}  # the latter stays on in a process
COMMANDS = """
import json, sys
from sagan.cli import main
for name, setting in json.loads(sys.argv[1]).items():
    try:
        main(["train", "config.yaml", "--out", name, "--set", setting])
    except SystemExit as left:
        assert not left.code
"""
EVERYTHING = {  # that draws, adds up, or scatters: attention that moves, all augmentations, a penalty, scores
    "discriminator": {"attention": {8: {"name": "em_attention", "bases": 3}, 16: "augmented_conv"}},
    "augment": {"policy": ["color", "translation", "cutout"]},
    "loss": {"r1": 1.0},
    "training": {"steps": 2, "batch_size": 4, "sample_every": 1, "snapshot_every": 1, "checkpoint_every": 1},
    "evaluate": {"every": 1, "num": 8, "metrics": ["coherence"]},
}


@pytest.fixture(scope="module")
def places(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders, in each the runs of SETTINGS, trained by a process of its own."""
    found = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for place in found:
        write_config(place / "config.yaml", data, **EVERYTHING)
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, str(SETTINGS).replace("'", '"')], cwd=place, capture_output=True,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    return found


@pytest.mark.parametrize("run", SETTINGS)
@pytest.mark.parametrize("kind", ["checkpoints", "snapshots", "samples"])
def test_two_processes_write_the_same_bytes(places: list[Path], run: str, kind: str) -> None:
    """Breaks when weights depend on anything but config and data: a clock, a hash seed, an unseeded draw, a race; or
    when a file holds a date, a path or the name of a machine."""
    first, second = (files_of(place / run / kind) for place in places)
    assert first.keys() == second.keys()
    assert len(first) >= 2
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.parametrize("run", SETTINGS)
def test_two_processes_measure_the_same(places: list[Path], run: str) -> None:
    """Breaks when losses or scores differ from process to process."""
    first, second = (place / run for place in places)
    assert log_of(first) == log_of(second)
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()

"""docs/results/gpu: parts that are split and joined, and the whole plan in miniature on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, files_of, write_config

from sagan.data.dataset import PreparedData
from sagan.evaluation.inception import random_weights
from sagan.evaluation.weights import as_file

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "results" / "gpu" / "run.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def plan(*arguments: object, code: int = 0, timeout: float = 300) -> str:
    """Output of `run.py ARGUMENTS`, stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def test_split_and_joined(tmp_path: Path) -> None:
    """Breaks when a part is too large, too many go in one call, a file is lost, or the order of the calls matters."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    noise = np.random.default_rng(0).bytes(70_000)
    (tmp_path / "a" / "one.bin").write_bytes(noise)
    (tmp_path / "a" / "b" / "two.txt").write_text("two")
    groups = plan("split", tmp_path / "a", "--out", tmp_path / "parts", "--part-bytes", 10_000).split()
    assert [Path(group).name for group in groups] == ["1", "2", "3"]
    for group in groups:
        sizes = [path.stat().st_size for path in Path(group).iterdir()]
        assert len(sizes) <= 4
        assert max(sizes) <= 10_000
    into = ["--out", tmp_path / "in"]
    assert "still to come: data.000 data.001 data.002" in plan("join", groups[1], *into)
    assert not (tmp_path / "in" / "data").exists()
    assert "still to come: data.000" in plan("join", groups[2], *into)
    assert "joined, 70" in plan("join", groups[0], *into)
    assert files_of(tmp_path / "in" / "data") == files_of(tmp_path / "a")
    assert "joined before" in plan("join", *groups, *into)
    assert [path.name for path in (tmp_path / "in" / ".parts").iterdir()] == []


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    """Breaks when a part that was cut or changed on its way is joined."""
    (tmp_path / "file.bin").write_bytes(b"some bytes")
    groups = plan("split", tmp_path / "file.bin", "--name", "w", "--out", tmp_path / "parts").split()
    part = Path(groups[0]) / "w.000"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert "does not have the SHA-256" in plan("join", *groups, "--out", tmp_path / "in", code=1)
    assert not (tmp_path / "in" / "w").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Breaks when a part of the plan that comes too early fails later, in a traceback."""
    assert "run `prepare` first" in plan("--work", tmp_path, "evaluate", code=1)
    assert "the first part needs --steps" in plan("--work", tmp_path, "train-part", "1", code=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_plan(tmp_path: Path, data: PreparedData) -> None:
    """Breaks when a command of the plan, an option or a file that one part leaves for the next is not what it was."""
    training = {**TINY["training"], "steps": 10**6, "snapshot_every": 5, "sample_every": 10**6}
    config = write_config(tmp_path / "tiny.yaml", data, training=training, optim={"decay": "linear"})
    weights = tmp_path / "weights.pth"
    weights.write_bytes(as_file(random_weights(0)).getvalue())
    groups = plan("split", data.folder, "--out", tmp_path / "parts", "--part-bytes", 50_000).split()
    assert len(groups) > 0
    plan("join", *groups, "--out", tmp_path / "in")
    work = ["--work", tmp_path / "work", "--config", config]
    plan(*work, "throughput", "--batch-sizes", "4,2", "--precisions", "no,bf16", "--compiled", "")
    found = json.loads((tmp_path / "work" / "results" / "throughput.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["ok"] * 8
    plan(*work, "prepare", "--data", tmp_path / "in" / "data", "--weights", weights)
    part = [*work, "--seconds", 45, "--grace", 15, "train-part"]
    assert "stopped in time" in plan(*part, 1, "--steps", 10**6)
    assert "resumed from step" in plan(*part, 2)
    lines = [json.loads(line) for line in (tmp_path / "work" / "results" / "parts.jsonl").read_text().splitlines()]
    assert lines[0]["logged"] < lines[1]["logged"] < 10**6
    few = ["--num", 8, "--files", 8, "--bench-num", 2, "--manifold-num", 8]
    plan(*work, "evaluate", *few)
    results = tmp_path / "work" / "results"
    assert json.loads((results / "bench-evaluate.json").read_text())["fid_images"] == 8 + len(data)
    assert {"fid", "kid"} <= json.loads((results / "scores.json").read_text()).keys()
    assert plan(*work, "evaluate", *few).count("done before") == 5
    plan(*work, "speed", "--presets", "studio64:1", "--variants", "plain,project", "--rounds", 1, "--maps", "8",
         "--channels", 16, "--map-batch", 1)  # fmt: skip
    assert json.loads((results / "step-studio64-1.json").read_text())["ratio_step"] > 0
    assert json.loads((results / "attention-8.json").read_text())["ratio_explicit"] > 0
    plan(*work, "collect", "--out", tmp_path / "out", "--checkpoint")
    plan("join", tmp_path / "out", "--out", tmp_path / "back")
    back = ["--work", tmp_path / "back" / "checkpoint", "--config", config]
    plan(*back, "prepare", "--data", data.folder)
    assert "resumed from step" in plan(*back, *part[len(work) :], 3)

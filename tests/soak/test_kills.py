"""A run that is killed at random moments ends as one that was left alone, to the byte, and never loses a checkpoint."""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from processes import start
from safetensors.torch import load_file
from tiny import TINY, files_of, log_of

from sagan.config.load import load_config
from sagan.data.dataset import PreparedData, is_prepared
from sagan.runs.checkpoint import list_checkpoints, verify_checkpoint
from sagan.utils.images import read_png
from sagan.utils.io import TEMPORARY, read_json

STEPS, CHECKPOINT_EVERY = 24, 2
pytestmark = pytest.mark.usefixtures("alone")


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run left, and how long it worked."""

    run: Path
    seconds: float


def write_config(folder: Path) -> Path:
    """Shapes that the run prepares itself; sheets, figures, scores, snapshots and checkpoints every few steps."""
    often = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "sample_every": 4, "snapshot_every": 6}
    config = {
        **TINY,
        "data": {"source": "shapes:1500", "prepared": str(folder / "prepared")},
        "training": {**TINY["training"], **often},
        "evaluate": {"every": 3, "num": 8, "metrics": ["coherence"], "best": "hue_agreement"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The second of two runs: the first one finds nothing in memory."""
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        begun, process = time.monotonic(), start(write_config(folder), folder / "run", folder / "said.txt")
        process.join(timeout=300)
        assert process.exitcode == 0, (folder / "said.txt").read_text()
    return Whole(folder / "run", time.monotonic() - begun)


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(5, 0, id="5", marks=pytest.mark.slow),
        pytest.param(50, 1, id="50", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, whole: Whole, kills: int, seed: int) -> None:
    draw, hit, round_ = random.Random(seed), Counter[str](), 0
    while sum(hit.values()) < kills:
        folder, moments, round_ = tmp_path / f"round-{round_}", list[float](), round_ + 1
        folder.mkdir()
        config, run = write_config(folder), folder / "run"
        while True:
            expected = newest(run)
            process = start(config, run, folder / "said.txt")
            moment = draw.uniform(0, whole.seconds / 2) if sum(hit.values()) < kills else None
            process.join(timeout=300 if moment is None else moment)
            if moment is None or process.exitcode is not None:
                break
            process.kill()
            process.join()
            moments.append(round(moment, 3))
            hit[phase(folder)] += 1
            check_nothing_is_broken(folder, expected, f"seed {seed}, round {round_ - 1}, killed after {moments} s")
        where, said = f"seed {seed}, round {round_ - 1}, killed after {moments} s", (folder / "said.txt").read_text()
        assert process.exitcode == 0, f"{where}\n{said}"
        check_resumed(said, expected, where)
        assert_same(run, whole.run, where)
    print(f"{sum(hit.values())} kills in {round_} runs:", dict(hit))


def newest(run: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    folders = list_checkpoints(run)
    return int(folders[-1].name) if folders else 0


def phase(folder: Path) -> str:
    """What a killed run was doing, by what it left."""
    partial = [path.parent.name for path in folder.rglob(f"{TEMPORARY}*") if TEMPORARY not in path.parent.name]
    if not is_prepared(folder / "prepared"):
        return "preparing"
    if not partial:
        return "between" if (folder / "run" / "log.jsonl").exists() else "building"
    return f"writing {partial[0]}"


def check_nothing_is_broken(folder: Path, before: int, where: str) -> None:
    """Everything that has its final name is whole; the checkpoints are at most their interval behind the log."""
    run = folder / "run"
    for checkpoint in list_checkpoints(run):
        verify_checkpoint(checkpoint)
    for path in run.rglob("*"):
        if TEMPORARY in str(path):
            continue
        if path.suffix == ".png":
            read_png(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".yaml":
            load_config(path)
    if is_prepared(folder / "prepared"):
        assert len(PreparedData.open(folder / "prepared")) == 1500, where
    assert newest(run) >= before, where
    logged = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    if logged:
        assert json.loads(logged[-1])["step"] - newest(run) <= CHECKPOINT_EVERY, where


def check_resumed(said: str, expected: int, where: str) -> None:
    """The last process went on from the newest checkpoint, or found the run finished."""
    if expected and "finished, all" not in said:
        assert f"resumed from step {expected}\n" in said, f"{where}\n{said}"
    assert "damaged" not in said, f"{where}\n{said}"


def assert_same(run: Path, whole: Path, where: str) -> None:
    """Checkpoints, snapshots, sheets, figures, scores to the byte; the log but for times; and nothing else is left."""
    for part in ("checkpoints", "snapshots", "samples"):
        found, expected = files_of(run / part), files_of(whole / part)
        assert found.keys() == expected.keys(), where
        assert [name for name in found if found[name] != expected[name]] == [], where
    assert log_of(run) == log_of(whole), where
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text(), where
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}, where
    assert not [*run.parent.rglob(f"{TEMPORARY}*")], where

"""`sagan ablate` from outside: the runs it trains, what it writes, what it does when one fails or it is stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import sagan
from tiny import TINY, files_of

from sagan.config import load_config
from sagan.data.dataset import PreparedData
from sagan.images import read_png

VARY = ["--vary", "generator.attention.8+discriminator.attention.8=self_attention,null"]
SCORES = ("coherence", "two_objects", "hue_agreement", "shape_agreement")

pytestmark = pytest.mark.usefixtures("alone")


def write_config(path: Path, data: PreparedData, steps: int = 2) -> Path:
    groups = {
        **TINY,
        "data": {"source": str(data.folder)},
        "training": {**TINY["training"], "steps": steps, "batch_size": 4, "checkpoint_every": 5},
        "evaluate": {"every": steps, "num": 4, "metrics": ["coherence"]},
    }
    path.write_text(yaml.safe_dump(groups))
    return path


@pytest.fixture(scope="module")
def ablated(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, and a whole ablation in `out`, its runs trained at the same time; and what it said."""
    folder = tmp_path_factory.mktemp("ablated")
    config = write_config(folder / "config.yaml", data)
    command = ["ablate", config, *VARY, "--out", folder / "out", "--json", "--jobs", "2"]
    done = started(*command)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    (folder / "stdout").write_text(out)
    (folder / "stderr").write_text(err)
    return folder


def started(*command: object) -> "subprocess.Popen[str]":
    """`sagan COMMAND` in a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-c", "from sagan.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition: object, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 200
    assert callable(condition)
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_object_with_every_variant(ablated: Path) -> None:
    """Breaks when stdout is not one object, a score, a count or a cost is missing, or the order is another."""
    found = json.loads((ablated / "stdout").read_text())
    assert [one["name"] for one in found["variants"]] == ["self_attention", "none"]
    for one in found["variants"]:
        assert (one["n"], one["seeds"], one["steps"]) == (1, [0], [2])
        assert set(SCORES) <= one["scores"].keys()
        assert one["peak_mib"]["mean"] > 100
        assert one["images_per_second"]["mean"] > 0
        assert one["protocol"]["num"] == 4
    attentive, plain = found["variants"]
    assert attentive["parameters"]["generator"] > plain["parameters"]["generator"] > 0
    assert attentive["attention"].keys() >= {"g_gamma/attention.8x8", "d_entropy/trunk.attention.8x8"}
    assert plain["attention"] == {}
    assert found["notes"] == []
    assert json.loads((ablated / "out" / "ablation.json").read_text())["results"] == found
    said = (ablated / "stderr").read_text()
    assert "[1/2] self_attention, seed 0\n" in said
    assert "[2/2] none, seed 0\n" in said


def test_the_runs_are_those_of_sagan_train(ablated: Path, tmp_path: Path) -> None:
    """Breaks when a variant is trained otherwise than `sagan train` with its settings trains it."""
    assert sagan("train", ablated / "config.yaml", "--out", tmp_path / "run", "--set", "generator.attention.8=null",
                 "--set", "discriminator.attention.8=null") == 0  # fmt: skip
    run = ablated / "out" / "runs" / "none-seed0"
    for part in ("snapshots", "samples", "checkpoints"):
        assert files_of(run / part) == files_of(tmp_path / "run" / part)
    assert load_config(run / "config.yaml") == load_config(tmp_path / "run" / "config.yaml")


def test_table_and_picture(ablated: Path) -> None:
    """Breaks when the table lacks a variant, or the picture a row, or the attention beside it."""
    text = (ablated / "out" / "ablation.md").read_text()
    assert "\n| self_attention | 1 | " in text
    assert "\n| none | 1 | " in text
    assert text.endswith("![samples and attention](ablation.png)\n")
    picture = read_png(ablated / "out" / "ablation.png")
    height, width = picture.shape[:2]
    colourful = (picture.max(2).astype(int) - picture.min(2) > 60).sum(1)  # the dots of the points
    assert colourful[: height // 2].max() > 20
    assert width > 1000
    right = picture[:, width // 2 :]
    assert (right[: height // 2] < 250).any()
    assert (right[3 * height // 4 :] >= 250).all()  # without attention there is nothing to show


def test_a_finished_ablation_is_shown_again(ablated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the same command trains again, or a folder cannot be shown without its config."""
    out = ablated / "out"
    before = files_of(out)
    assert sagan("ablate", ablated / "config.yaml", *VARY, "--out", out) == 0
    by_command = capsys.readouterr()
    assert files_of(out) == before
    assert sagan("ablate", out) == 0
    assert capsys.readouterr().out == by_command.out
    assert files_of(out) == before
    assert "self_attention" in by_command.out
    assert by_command.err == ""
    assert sagan("ablate", out, "--seeds", "0-1") == 2
    assert "to go on name its config" in capsys.readouterr().err


def test_a_variant_that_cannot_be_built_is_refused(ablated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Breaks when a mistake that only the networks can find shows after other variants were trained."""
    before = files_of(ablated / "out")
    vary = "generator.attention.8+discriminator.attention.8=self_attention,null,{name: self_attention, heads: 2}"
    assert sagan("ablate", ablated / "config.yaml", "--vary", vary, "--out", ablated / "out") == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("sagan: variant self_attention,heads=2: generator.attention.8: self_attention has no ")
    assert shown.err.count("\n") == 1
    assert files_of(ablated / "out") == before


def test_a_variant_that_fails_does_not_end_the_others(
    data: PreparedData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a crash goes unnoticed, stops the rest, or is not tried again; or seeds cannot be added."""
    config, out = write_config(tmp_path / "config.yaml", data), tmp_path / "out"
    vary = ["--vary", "optim.generator.lr=1.0e+30,0.001", "--out", out]
    assert sagan("ablate", config, *vary) == 1
    shown = capfd.readouterr()
    assert "lr=1e+30-seed0 failed: " in shown.err
    text = (out / "ablation.md").read_text()
    assert "\n| lr=1e+30 | 0 | - |" in text
    assert "\n| lr=0.001 | 1 | " in text
    (line,) = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: lr=1e+30, seed 0: ")
    assert "at step 2; stopped" in line
    file = out / line.rpartition("(")[2].rstrip(")")
    assert "at step 2; stopped" in file.read_text()
    before = files_of(out / "runs" / "lr=0.001-seed0")
    assert sagan("ablate", config, "--vary", "optim.generator.lr=0.001", "--seeds", "0-1", "--out", out) == 0
    text = (out / "ablation.md").read_text()
    assert "\n| lr=0.001 | 2 | " in text
    assert line in text
    assert files_of(out / "runs" / "lr=0.001-seed0") == before


@contextmanager
def going(config: Path, out: Path, least: int) -> "Iterator[subprocess.Popen[str]]":
    """The ablation of one variant, once its run has logged `least` steps in this process."""
    log = out / "runs" / "self_attention-seed0" / "log.jsonl"
    start = len(log.read_text().splitlines()) if log.exists() else 0
    key = "generator.attention.8=self_attention"
    with started("ablate", config, "--vary", key, "--out", out) as process:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= start + least, process)
        yield process


def test_ctrl_c_saves_and_shows_what_is_done(data: PreparedData, tmp_path: Path) -> None:
    """Breaks when Ctrl-C, which a terminal sends to the run as well, loses work, hangs, or has another exit code."""
    config, out = write_config(tmp_path / "config.yaml", data, steps=400), tmp_path / "out"
    with going(config, out, least=1) as process:
        (run,) = psutil.Process(process.pid).children()
        run.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "self_attention-seed0 stopped: goes on with the same command" in said
    assert "not done yet: self_attention (seed 0)" in shown
    (checkpoint,) = (out / "runs" / "self_attention-seed0" / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name) < 400


@pytest.mark.slow
def test_a_killed_ablation_goes_on(data: PreparedData, tmp_path: Path) -> None:
    """Breaks when the run trains on after its ablation was killed, or begins again at step 0 with the next one."""
    config, out = write_config(tmp_path / "config.yaml", data, steps=60), tmp_path / "out"
    run = out / "runs" / "self_attention-seed0"
    with going(config, out, least=12) as process:
        process.kill()
    with open(run / ".lock", "w") as lock:
        wait_for(lambda: _free(lock.fileno()))
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert not (run / "snapshots" / "00000060").exists()
    assert sagan("ablate", config, "--vary", "generator.attention.8=self_attention", "--out", out) == 0
    assert "resumed from step " in (out / "output" / "self_attention-seed0.txt").read_text()
    assert len((run / "log.jsonl").read_text().splitlines()) == 60
    assert "\n| self_attention | 1 | " in (out / "ablation.md").read_text()


def _free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

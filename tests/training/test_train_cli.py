"""`sagan train` from outside: exit codes, signals, refusals, the same command again."""

import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import sagan
from processes import start, wait_for
from tiny import files_of, log_of, write_config

from sagan.data.dataset import PreparedData

STEPS = 40
pytestmark = pytest.mark.usefixtures("alone")


def sagan_train(config: Path, out: Path, *options: str) -> int:
    """The exit code of `sagan train` in this process."""
    return sagan("train", config, "--out", out, *options)


@pytest.fixture(scope="module")
def undisturbed(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml and a whole run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder / "config.yaml", data, training={"steps": STEPS})
    torch.set_num_threads(1)
    assert sagan_train(config, folder / "run") == 0
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    undisturbed: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    config, out = undisturbed / "config.yaml", tmp_path / "run"
    process = start(config, out, tmp_path / "stderr.txt")
    wait_for(process, out / "log.jsonl")
    os.kill(process.pid or 0, number)
    process.join(timeout=60)
    said = (tmp_path / "stderr.txt").read_text()
    assert process.exitcode == code
    (step,) = [int(folder.name) for folder in (out / "checkpoints").iterdir()]
    assert 0 < step < STEPS
    assert said.splitlines()[-1].startswith(f"stopped by {number.name} at step {step} and saved")
    assert "Traceback" not in said
    assert sagan_train(config, out) == 0
    for part in (f"checkpoints/{STEPS:08d}", f"snapshots/{STEPS:08d}", "samples"):
        assert files_of(out / part) == files_of(undisturbed / "run" / part)
    assert log_of(out) == log_of(undisturbed / "run")


def test_a_finished_run_says_so(undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = undisturbed / "run"
    before = files_of(out)
    assert sagan_train(undisturbed / "config.yaml", out) == 0
    assert "finished, all 40 steps are done" in capfd.readouterr().err
    assert files_of(out) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "optim.generator.lr=0.5"], "optim.generator.lr: 0.001 in the run, 0.5 now"),
        (["--set", "training.steps=5"], "training.steps: 40 in the run, 5 now"),
        (["--set", "generator.attention={}"], "generator.attention"),
        (["--set", "training.steps=41", "--init-from", "other"], "training.init_from: None in the run, other now"),
    ],
    ids=["lr", "fewer-steps", "architecture", "other-weights"],
)
def test_a_run_takes_no_other_settings(
    undisturbed: Path, capfd: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    before = files_of(undisturbed / "run")
    assert sagan_train(undisturbed / "config.yaml", undisturbed / "run", *options) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert expected in err
    assert len(err.splitlines()) <= 5
    assert files_of(undisturbed / "run") == before


def test_two_at_once_in_a_new_folder(undisturbed: Path, tmp_path: Path) -> None:
    config, out = undisturbed / "config.yaml", tmp_path / "run"
    logs = [tmp_path / f"{n}.txt" for n in range(2)]
    both = [start(config, out, log) for log in logs]
    for process in both:
        process.join(timeout=120)
    said = {process.exitcode: log.read_text() for process, log in zip(both, logs, strict=True)}
    assert said.keys() == {0, 2}, said
    assert said[2] == f"sagan: {out}: another process is training in this folder\n"
    for part in ("checkpoints", "snapshots", "samples"):
        assert files_of(out / part) == files_of(undisturbed / "run" / part)
    assert log_of(out) == log_of(undisturbed / "run")


@pytest.mark.parametrize("options", [["--set", "evaluate.every=1"], ["--init-from", "no/such/run"]], ids=str)
def test_a_refused_start_leaves_no_run(tmp_path: Path, data: PreparedData, options: list[str]) -> None:
    config, empty = write_config(tmp_path / "config.yaml", data), tmp_path / "empty"
    empty.mkdir()
    for out in (tmp_path / "run", empty):
        assert sagan_train(config, out, *options) == 2
    assert not (tmp_path / "run").exists()
    assert sagan_train(config, empty, "--set", "seed=1", "--set", "training.steps=1") == 0


def test_an_unprepared_source_is_prepared_first(tmp_path: Path, data: PreparedData) -> None:
    prepared = {"source": "shapes:24", "prepared": str(tmp_path / "prepared")}
    config = write_config(tmp_path / "config.yaml", data, data=prepared, training={"steps": 1})
    assert sagan_train(config, tmp_path / "run") == 0
    assert len(PreparedData.open(tmp_path / "prepared")) == 24
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "num_classes: 4" in written
    assert "d_steps: 1" in written


def test_fine_tuning_starts_from_a_run(undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, source = undisturbed / "config.yaml", str(undisturbed / "run")
    options = ["--init-from", source, "--set", "training.log_every=1"]
    assert sagan_train(config, tmp_path / "run", *options, "--set", "training.steps=1") == 0
    assert f"weights of both networks from {source}/checkpoints/00000040" in capfd.readouterr().err
    tuned, first = log_of(tmp_path / "run")[0], log_of(undisturbed / "run")[0]
    assert abs(tuned["g_gamma/attention.8x8"]) > 2 * abs(first["g_gamma/attention.8x8"])
    assert sagan_train(config, tmp_path / "run", *options, "--set", "training.steps=2") == 0
    err = capfd.readouterr().err
    assert "resumed from step 1" in err
    assert "weights of both" not in err


def test_auto_precision_is_recorded_and_kept(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 1, "precision": "auto"})
    run = tmp_path / "run"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert sagan_train(config, run) == 0
    assert "precision: bf16" in (run / "config.yaml").read_text()
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
    assert sagan_train(config, run, "--set", "training.steps=2") == 0
    assert sagan_train(config, run, "--set", "training.steps=3", "--set", "training.precision=float32") == 2

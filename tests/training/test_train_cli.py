"""`sagan train` from outside: exit codes, signals, refusals, the same command again."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command_line import sagan
from processes import start, wait_for
from safetensors.torch import load_file
from tiny import files_of, log_of, write_config

from sagan.data.dataset import PreparedData
from sagan.utils.io import append_json_line, read_json

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


CHANGED = ("optim.generator.lr=1e-12", "optim.discriminator.betas=[0.5, 0.9]", "optim.d_steps=2", "loss.r1=0.5",
           "augment.policy=[color]")  # fmt: skip


def test_settings_change_within_a_run(tmp_path: Path, data: PreparedData, capfd: pytest.CaptureFixture[str]) -> None:
    """From the next step on, exactly, also in later resumes by the first command; `compare` shows it."""
    config = write_config(
        tmp_path / "config.yaml", data, training={"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    )
    run, other = tmp_path / "run", tmp_path / "other"
    assert sagan_train(config, run) == 0
    shutil.copytree(run, other)
    change = [word for setting in CHANGED for word in ("--change", setting)]
    assert sagan_train(config, run, "--set", "training.steps=4", *change) == 0
    assert "from step 4 on, optim.generator.lr is 1e-12 (was 0.001)" in capfd.readouterr().err
    assert sagan_train(config, run, "--set", "training.steps=6") == 0
    assert sagan_train(config, other, "--set", "training.steps=6", *change) == 0
    for part in ("checkpoints/00000006", "snapshots/00000006"):
        assert files_of(run / part) == files_of(other / part)
    before, after = (load_file(run / f"checkpoints/{step:08d}/generator.safetensors") for step in (4, 6))
    weights = [name for name in before if name.endswith(("original", "bias"))]
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in weights)
    assert "r1" in log_of(run)[-1]
    assert read_json(run / "checkpoints/00000006/state.json")["param_groups"]["discriminator_optimizer"][0][
        "betas"] == [0.5, 0.9]  # fmt: skip
    capfd.readouterr()
    assert sagan("compare", run, "--json") == 0
    (shown,) = json.loads(capfd.readouterr().out)["runs"]
    assert [(change["step"], sorted(change["changes"])) for change in shown["changes"]] == [
        (3, ["augment.policy", "loss.r1", "optim.d_steps", "optim.discriminator.betas", "optim.generator.lr"])
    ]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["--change", "generator.channels=4"],
            "--change generator.channels: networks, data, seed and batch size cannot",
        ),
        (["--change", "training.batch_size=4"], "--change training.batch_size: networks, data"),
        (["--change", "training.log_every=4"], "--change training.log_every: changes no result; use --set"),
        (["--change", "loss.r1=x"], "--change: loss.r1: input should be a valid number"),
        (["--set", "loss.r1=1"], "use --change, or undo"),
    ],
)
def test_what_cannot_change_within_a_run(
    undisturbed: Path, capfd: pytest.CaptureFixture[str], settings: list[str], problem: str
) -> None:
    before = files_of(undisturbed / "run")
    assert sagan_train(undisturbed / "config.yaml", undisturbed / "run", *settings) == 2
    assert problem in capfd.readouterr().err
    assert files_of(undisturbed / "run") == before


def test_a_new_run_has_nothing_to_change(tmp_path: Path, data: PreparedData, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "config.yaml", data)
    assert sagan_train(config, tmp_path / "run", "--change", "loss.r1=1") == 2
    assert "holds no run yet; use --set" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_kill_while_settings_change(tmp_path: Path, data: PreparedData) -> None:
    """changes.jsonl is written before config.yaml; the next start goes on with the change."""
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 2})
    run = tmp_path / "run"
    assert sagan_train(config, run) == 0
    append_json_line(run / "changes.jsonl", {"step": 2, "changes": {"loss.r1": [0.0, 0.5]}})
    assert sagan_train(config, run, "--set", "training.steps=3", "--set", "loss.r1=0.7") == 2
    assert sagan_train(config, run, "--set", "training.steps=3") == 0
    assert "r1: 0.5" in (run / "config.yaml").read_text()
    assert len((run / "changes.jsonl").read_text().splitlines()) == 1
    (run / "changes.jsonl").write_text("{}")
    assert sagan_train(config, run, "--set", "training.steps=3") == 2


def test_an_operation_without_a_deterministic_form_is_one_line(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set …")

    monkeypatch.setattr("sagan.training.trainer.train", fail)
    assert sagan_train(write_config(tmp_path / "config.yaml", data), tmp_path / "run") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("sagan: ")]
    assert "grid_sampler_2d_backward_cuda has no deterministic form on this device; set deterministic: false" in line

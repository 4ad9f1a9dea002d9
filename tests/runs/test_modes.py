"""Averaged and raw weights, running and standing statistics: what a checkpoint gives, and which mode is called best."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import sagan
from small_generator import small_generator
from standin import register_standin
from tiny import tiny_config, train_tiny, write_config

from sagan.data.dataset import PreparedData
from sagan.models.inference import with_standing_statistics
from sagan.runs.checkpoint import load_generators
from sagan.runs.snapshot import fingerprint, load_snapshot
from sagan.utils.errors import UserError
from sagan.utils.random import torch_generator

STANDIN = register_standin()
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: PreparedData) -> Path:
    """Two real steps."""
    folder = tmp_path_factory.mktemp("modes")
    config = write_config(folder / "c.yaml", data, training={"steps": 2, "batch_size": 4})
    assert sagan("train", config, "--out", folder / "run") == 0
    return folder / "run"


def test_a_checkpoint_holds_the_generator_of_its_snapshot(run: Path) -> None:
    """The averaged generator of a checkpoint equals the snapshot."""
    found = load_generators(run / "checkpoints" / "00000002")
    assert fingerprint(found["averaged"]) == fingerprint(load_snapshot(run))
    assert fingerprint(found["raw"]) != fingerprint(found["averaged"])
    assert found["raw"].class_names == found["averaged"].class_names != ()


def test_a_checkpoint_outside_of_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    """A checkpoint without its run's config is refused."""
    shutil.copytree(run / "checkpoints" / "00000002", tmp_path / "a" / "b")
    with pytest.raises(UserError, match="no such config file"):
        load_generators(tmp_path / "a" / "b")


def test_standing_statistics_are_those_of_many_batches() -> None:
    """Standing statistics are means over batches; the generator is unchanged.

    The first batch norm sees the linear layer alone, so its statistics can be computed separately.
    """
    generator = small_generator()
    before = fingerprint(generator)
    found = with_standing_statistics(generator, batches=8)
    assert fingerprint(generator) == before
    assert not found.training
    rng = torch_generator(0, "standing statistics")
    maps = [generator.linear(torch.randn(64, generator.z_dim, generator=rng)).unflatten(1, (-1, 16)) for _ in range(8)]
    norm = found.blocks[0].norm1
    mean = torch.stack([m.mean((0, 2)) for m in maps]).mean(0)
    variance = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-4)


def test_the_command_says_which_mode_is_best(
    run: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four modes are evaluated; the best has the lowest FID."""
    monkeypatch.setenv("HOME", str(tmp_path))
    capsys.readouterr()
    assert sagan("evaluate", run, "--modes", "--metrics", "fid", "--backbone", STANDIN, "--num", 24, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["modes"]) == 4
    lowest = min(found["modes"], key=lambda mode: found["modes"][mode]["fid"])
    assert found["best_mode"] == lowest
    assert found["fid"] == found["modes"][lowest]["fid"]
    assert f"{found['protocol']['weights']} weights, {found['protocol']['batch_norm']} statistics" == lowest


def test_the_best_snapshot_of_a_run(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--which best evaluates the snapshot of the best step."""
    scored = ["evaluate.every=1", "evaluate.num=8", "evaluate.metrics=[coherence]", "evaluate.best=two_objects"]
    run = tmp_path / "run"
    trained = train_tiny(run, tiny_config("training.steps=3", "training.snapshot_every=3", *scored), data)
    assert trained.progress.best_step == 1  # nothing is better than 0
    monkeypatch.setenv("HOME", str(tmp_path))
    for which, step in (("best", 1), ("newest", 3)):
        assert sagan("evaluate", run, "--which", which, "--metrics", "coherence", "--num", 4, "--json") == 0
        assert json.loads(capsys.readouterr().out)["step"] == step

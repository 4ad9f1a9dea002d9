"""The `sagan` command: help, scripts, names of weights, a disk that fills up."""

import re
import resource
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import sagan
from tiny import TINY, files_of

from sagan.cli import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the tiny run, beside its data."""
    folder = tmp_path_factory.mktemp("config")
    assert sagan("prepare", "shapes:64", "--out", folder / "data") == 0
    training = TINY["training"] | {"steps": 2, "batch_size": 4}
    (folder / "c.yaml").write_text(
        yaml.safe_dump(TINY | {"data": {"source": str(folder / "data")}, "training": training})
    )
    return folder / "c.yaml"


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert sagan("train", config, "--out", run) == 0
    return run


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has help on stdout, and a description of every option."""
    assert sagan(*command, "--help") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: sagan {' '.join(command)}".rstrip())
    assert not re.search(r"^  --[\w-]+( [A-Z]+)?$\n(?!  {10})", out, re.MULTILINE)
    assert err == ""
    assert sagan(*command, "-h") == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("start", "usage"),
    [
        (lambda: runpy.run_path(str(ROOT / "train.py"), run_name="__main__"), "sagan train [OPTIONS]"),
        (lambda: runpy.run_path(str(ROOT / "sample.py"), run_name="__main__"), "sagan sample [OPTIONS]"),
        (lambda: runpy.run_module("sagan", run_name="__main__"), "sagan [OPTIONS]"),
    ],
    ids=["train.py", "sample.py", "python -m sagan"],
)
def test_other_ways_to_start(
    start: Callable[[], object], usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: {usage}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3", "#1", "a: b", "null", "ü😀"])
def test_weights_to_start_from_have_any_name(
    name: str, trained: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """--init-from is not read as YAML."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "snapshots" / "00000002", name)
    assert sagan("train", config, "--out", "out", "--init-from", name, "--set", "training.steps=1") == 0
    assert f"generator weights from {name}" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["training"]["init_from"] == name


def test_a_full_disk_leaves_the_checkpoint_before(
    trained: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = files_of(run / "checkpoints")
    command = ["train", config, "--out", run, "--set", "training.steps=4", "--set", "training.checkpoint_every=1"]
    unlimited, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())) - 1, hard))
    try:
        assert sagan(*command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, hard))
    assert re.search(r"^sagan: .*: the disk is full; ", capsys.readouterr().err, re.MULTILINE)
    assert files_of(run / "checkpoints") == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]
    assert sagan(*command) == 0
    assert "resumed from step 2\n" in capsys.readouterr().err

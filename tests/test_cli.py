"""The `sagan` command as a user meets it: help, names of weights, a disk that fills up."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import sagan
from tiny import TINY, files_of

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "prepare", "sample", "attend", "evaluate", "ablate", "export", "compare", "stats", "configs")
LIMITED = """
import resource, sys
from sagan.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
main(sys.argv[2:])
"""


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
    run = tmp_path_factory.mktemp("trained") / "run"
    assert sagan("train", config, "--out", run) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of two steps, to be spoiled."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(command: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sagan(*command, option) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: sagan {' '.join(command)}".rstrip())
    assert not re.search(r"^  --[\w-]+( [A-Z]+)?$\n(?!  {10})", out, re.MULTILINE)
    assert err == ""


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["configs"]])
def test_help_comes_without_torch(command: list[str]) -> None:
    code = "import sys\nfrom sagan.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("command", ["train", "sample"])
def test_scripts_are_the_commands(command: str) -> None:
    done = subprocess.run([sys.executable, ROOT / f"{command}.py", "--help"], capture_output=True, text=True)
    assert done.stdout.startswith(f"Usage: sagan {command} [OPTIONS]")
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["3", "#1", "a: b", "null", "ü😀"])
def test_weights_to_start_from_have_any_name(
    name: str, trained: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "snapshots" / "00000002", name)
    assert sagan("train", config, "--out", "out", "--init-from", name, "--set", "training.steps=1") == 0
    assert f"generator weights from {name}" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["training"]["init_from"] == name


def test_a_full_disk_leaves_the_checkpoint_before(run: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run / "checkpoints")
    limit = max(map(len, before.values())) - 1
    command = ["train", config, "--out", run, "--set", "training.steps=4", "--set", "training.checkpoint_every=1"]
    done = subprocess.run([sys.executable, "-c", LIMITED, str(limit), *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"^sagan: .*: the disk is full; no incomplete files were left$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert files_of(run / "checkpoints") == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]
    assert sagan(*command) == 0
    assert "resumed from step 2\n" in capsys.readouterr().err


def test_three_processes_and_a_batch_of_four(config: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    command = [*launcher, ROOT / "train.py", config, "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "training.batch_size 4 is not divisible by 3 processes" in done.stderr
    assert not (tmp_path / "run").exists()

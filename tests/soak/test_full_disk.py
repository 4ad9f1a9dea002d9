"""A disk that fills up while a run writes: said in one line, nothing half-written, and the same command goes on."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from processes import start
from tiny import TINY, files_of, log_of

from sagan.data.dataset import PreparedData
from sagan.runs.checkpoint import list_checkpoints, verify_checkpoint
from sagan.utils.images import read_png
from sagan.utils.io import TEMPORARY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system of a chosen size can be mounted here (that takes root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def sagan_train(config: Path, run: Path, trackers: str = "[]") -> tuple[int | None, str]:
    """Exit code of `sagan train`, and what it said."""
    said = config.parent / "said.txt"
    process = start(config, run, said, "--set", f"training.trackers={trackers}")
    process.join(timeout=300)
    return process.exitcode, said.read_text()


def write_config(folder: Path, data: PreparedData) -> Path:
    """Something of every kind is written every second step."""
    every = {f"{kind}_every": 2 for kind in ("sample", "snapshot", "checkpoint")}
    config = {
        **TINY,
        "data": {"source": str(data.folder)},
        "training": {**TINY["training"], "steps": 8, **every},
        "evaluate": {"every": 2, "num": 8, "metrics": ["coherence"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.mark.timeout(1800)
def test_a_full_disk_at_every_kind_of_write(tmp_path: Path, disk: Path, data: PreparedData) -> None:
    config = write_config(tmp_path, data)
    code, said = sagan_train(config, tmp_path / "whole")
    assert code == 0, said
    size = sum(len(content) for content in files_of(tmp_path / "whole").values())
    named, rooms = set(), [int(size * part) for part in (0.8, 0.35, 0.1, 0.02)]
    for room in rooms:
        run, filler = disk / "run", disk / "filler"
        filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
        tracked = room == rooms[-1]
        code, said = sagan_train(config, run, trackers="[tensorboard]" if tracked else "[]")
        assert code == 2, said
        (message,) = [line for line in said.splitlines() if line.startswith("sagan: ")]
        assert message.endswith(": the disk is full; no incomplete files were left")
        assert tracked or "Traceback" not in said, said  # TensorBoard's own thread tells of its error too
        named.add(Path(message.removeprefix("sagan: ").partition(":")[0]).name.split("-")[-1])
        check_whole(run)
        filler.unlink()
        code, said = sagan_train(config, run)
        assert code == 0, said
        for part in ("checkpoints", "snapshots", "samples"):
            assert files_of(run / part) == files_of(tmp_path / "whole" / part), room
        assert log_of(run) == log_of(tmp_path / "whole")
        shutil.rmtree(run)
    assert len(named) > 1, named  # not always the same kind of file


def check_whole(run: Path) -> None:
    for checkpoint in list_checkpoints(run):
        verify_checkpoint(checkpoint)
    for path in run.rglob("*.png"):
        if TEMPORARY not in str(path):
            read_png(path)
    for path in run.rglob("*.json"):
        if TEMPORARY not in str(path):
            json.loads(path.read_text())


def test_a_folder_that_cannot_be_written(tmp_path: Path, disk: Path, data: PreparedData) -> None:
    config = write_config(tmp_path, data)
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, said = sagan_train(config, disk / "run")
    assert code == 2
    assert said == f"sagan: {disk / 'run'}: no permission to write in {disk / 'run'}\n"
    assert [*(disk / "run").iterdir()] == []

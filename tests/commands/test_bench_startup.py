"""`sagan bench startup`: real processes in turn."""

import json
from pathlib import Path

import pytest
from command_line import sagan
from small_generator import small_generator

from sagan.commands.bench_startup import IMAGES, time_processes
from sagan.snapshot import save_snapshot


@pytest.mark.slow
def test_processes_are_timed_in_turn(tmp_path: Path) -> None:
    """Breaks when a process did not do its work, or the first round, which compiles, counts."""
    save_snapshot(small_generator(), tmp_path / "snapshot")
    took = time_processes(tmp_path / "snapshot", tmp_path, 1)
    assert list(took) == ["python", "import_torch", "help", "sample"]
    assert all(len(each) == 1 for each in took.values())
    for folder in ("out0", "out1"):
        assert len(list((tmp_path / folder).glob("seed*.png"))) == IMAGES
    assert took["sample"][0].processor > took["import_torch"][0].processor > took["help"][0].processor > 0
    assert all(0 < each[0].processor < 60 and each[0].wall < 600 for each in took.values())


@pytest.mark.slow
def test_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when `--help` or `sample` starts more slowly than was promised (0.3 s; 1.7 times `import torch`)."""
    assert sagan("bench", "startup", "--rounds", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rounds"], found["images"], found["resolution"], found["channels"]) == (3, 16, 32, 64)
    assert found["seconds_help"] < 0.3
    assert found["ratio_sample_to_import_torch"] < 1.7
    expected = found["seconds_help"] / found["seconds_python"]
    assert found["ratio_help_to_python"] == pytest.approx(expected, rel=0.5)

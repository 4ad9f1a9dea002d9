"""`sagan bench sample`: drawing against the plain form, in one run."""

import json
from pathlib import Path

import pytest
from command_line import sagan
from small_generator import small_generator

from sagan.snapshot import save_snapshot


def test_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the ratio is upside down, is missing, or compares two networks."""
    save_snapshot(small_generator(), tmp_path / "snapshot")
    assert sagan("bench", "sample", tmp_path / "snapshot", "--rounds", 1, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["resolution"], found["channels"], found["rounds"]) == (32, 8, 1)
    assert found["images_differ_by"] <= 1
    rates = [found[f"images_per_second_{name}"] for name in ("project", "plain")]
    assert found["ratio_sample"] == pytest.approx(rates[0] / rates[1])


def test_a_config_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a config is taken for a snapshot, or people get JSON; without classes, too."""
    text = "data: {resolution: 64, num_classes: 0}\ngenerator: {channels: 4}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert sagan("bench", "sample", tmp_path / "c.yaml", "--rounds", 1) == 0
    out, err = capsys.readouterr()
    assert dict(line.split() for line in out.splitlines())["resolution"] == "64"
    assert "ratio_sample" in out
    assert err.startswith("plain: spectral norm in every forward")


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a source that is not there ends in a traceback."""
    assert sagan("bench", "sample", tmp_path / "none.yaml") == 2
    assert "no such config file" in capsys.readouterr().err
    assert sagan("bench", "sample", tmp_path / "none") == 2
    assert "no such snapshot or run" in capsys.readouterr().err

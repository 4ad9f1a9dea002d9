"""`sagan bench evaluate`: the same work by torch-fidelity and by us, timed in turn."""

import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from command_line import sagan
from PIL import Image

from sagan.commands import evaluate_variants
from sagan.commands.bench_evaluate import bench_evaluate_command
from sagan.commands.evaluate_variants import Timing, _in_turn
from sagan.errors import UserError


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights in torch hub's cache, and statistics of few features."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(evaluate_variants, "DISTANCE_OF", 16)


@pytest.mark.usefixtures("quick")
def test_both_compute_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when one of the two is given other images, weights or statistics, or a key is missing."""
    assert sagan("bench", "evaluate", "--num", 3, "--rounds", 2, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["images"], found["rounds"], found["resolution"], found["batch_size"]) == (3, 2, 32, 64)
    assert found["weights"].startswith("random")
    assert 0 < found["features_differ_by"] < 1e-4
    assert found["distances_differ_by"] < 1e-9
    assert [key for key in found if key.startswith("ratio")] == ["ratio_features", "ratio_frechet"]
    for name in ("torch_fidelity", "project"):
        assert found[f"images_per_second_{name}"] > 0
        assert found[f"seconds_frechet_{name}"] > 0
        assert found[f"spread_{name}"] >= 0
        assert found[f"spread_frechet_{name}"] >= 0


@pytest.mark.usefixtures("quick")
def test_text_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when people get JSON, or weights that are named are replaced by random ones."""
    assert sagan("bench", "evaluate", "--num", 2, "--rounds", 1) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert float(lines["ratio_features"]) > 0
    assert err.startswith("torch-fidelity: its own loop")
    assert sagan("bench", "evaluate", "--inception-weights", tmp_path / "none.pth") == 2
    assert "none.pth: no such file of weights" in capsys.readouterr().err


def test_ratio_says_how_many_times_as_fast_ours_is() -> None:
    """Breaks when it is upside down, or a ratio of medians, which a slow phase of the machine moves."""
    seconds = {"torch_fidelity": [2.0, 30.0, 4.0], "project": [1.0, 10.0, 4.0]}
    assert Timing(seconds, 0.0).ratio == median([2.0, 3.0, 1.0]) == 2.0


def test_rounds_are_interleaved() -> None:
    """Breaks when one is timed after the other, so that a machine that slows down decides."""
    calls: list[str] = []
    seconds = _in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "ababab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_numbers_that_make_no_sense_are_refused() -> None:
    """Breaks when nothing is timed, and a ratio of nothing is a traceback."""
    for num, rounds in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="both are at least 1"):
            bench_evaluate_command(num, rounds, None, False)


@pytest.mark.usefixtures("quick")
def test_fid_of_the_same_files_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when one of the two reads other files or weights, sums otherwise, or counts images that are not there."""
    rng = np.random.default_rng(0)
    for name, count, add in (("samples", 5, 0), ("reference/a", 3, 60), ("reference/b", 3, 90)):
        (tmp_path / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 160, (32, 32, 3), dtype=np.uint8) + np.uint8(add)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    folders = ["--samples", tmp_path / "samples", "--reference", tmp_path / "reference"]
    assert sagan("bench", "evaluate", "--num", 2, "--rounds", 1, *folders, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fid_images"] == 11
    assert found["fid_torch_fidelity"] > 1e-3
    assert found["fid_project"] == pytest.approx(found["fid_torch_fidelity"], rel=1e-3)
    assert found["fid_differs_by"] == abs(found["fid_project"] - found["fid_torch_fidelity"])
    assert found["ratio_fid"] > 0
    (tmp_path / "samples" / "grid.png").write_bytes((tmp_path / "samples" / "0.png").read_bytes())
    assert sagan("bench", "evaluate", "--num", 2, "--rounds", 1, *folders) == 2
    assert "holds the sheet grid.png" in capsys.readouterr().err
    assert sagan("bench", "evaluate", "--samples", tmp_path) == 2
    assert "give both folders, or neither" in capsys.readouterr().err

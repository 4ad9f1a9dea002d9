"""`sagan evaluate`: scores of a snapshot or a run, as text and as one JSON object."""

import json
from pathlib import Path

import pytest
from command_line import sagan
from small_generator import small_generator

from sagan.data.shapes import CLASSES
from sagan.networks import Generator
from sagan.snapshot import save_snapshot


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two snapshots of a generator that was trained on shapes, as far as one can see."""
    folder = tmp_path_factory.mktemp("run")
    for step, channels in ((1, 4), (2, 8)):
        generator: Generator = small_generator(channels=channels)
        generator.class_names = CLASSES
        save_snapshot(generator, folder / "snapshots" / f"{step:08d}")
    return folder


def scores(source: Path, capsys: pytest.CaptureFixture[str], num: int = 12) -> dict:
    """The one object on stdout."""
    assert sagan("evaluate", source, "--num", num, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_json_says_the_scores_and_how_they_were_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the object lacks a score or the protocol, or the same command gives other figures."""
    found = scores(run / "snapshots" / "00000002", capsys)
    assert found["protocol"] == {"num": 12, "seeds": "0-11", "labels": "seed mod classes"}
    assert {"coherence", "two_objects", "hue_agreement", "shape_agreement", "label_agreement"} <= found.keys()
    assert scores(run / "snapshots" / "00000002", capsys) == found
    assert (
        sorted(path.name for path in run.rglob("*") if path.is_file())
        == ["config.json"] * 2 + ["model.safetensors"] * 2
    )


def test_a_run_is_its_newest_snapshot_and_keeps_the_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when another snapshot than the newest is scored, or a result overwrites the ones before."""
    newest = scores(run / "snapshots" / "00000002", capsys)
    assert scores(run, capsys) == newest
    assert scores(run, capsys, num=8) != newest
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").unlink()
    assert [line.pop("num") for line in lines] == [12, 8]
    assert lines[0] == {name: value for name, value in newest.items() if name != "protocol"}


def test_text_is_a_line_a_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a score is missing or rounded beyond use in what people read."""
    found = scores(run / "snapshots" / "00000002", capsys)
    assert sagan("evaluate", run / "snapshots" / "00000002", "--num", 12) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    found.pop("protocol")
    assert shown.keys() == found.keys()
    assert all(float(shown[name]) == pytest.approx(value, abs=5e-5) for name, value in found.items())

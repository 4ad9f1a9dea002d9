"""A new metric is one entry; protocol fields belong to the metrics that they decide."""

import json
from pathlib import Path

import pytest
import torch
from command_line import sagan
from small_generator import small_generator
from tiny import tiny_config, tiny_run

from sagan.data.dataset import PreparedData
from sagan.evaluation.registry import DIRECTION, METRICS, Inputs, Metric, Scores, decides
from sagan.evaluation.result import Protocol
from sagan.experiments.runs import MetricsLine
from sagan.experiments.table import score_text
from sagan.runs.checkpoint import Progress
from sagan.runs.snapshot import save_snapshot


def gray(inputs: Inputs) -> Scores:
    return Scores({"gray": inputs.samples.read(torch.arange(2).numpy()).float().mean().item()})


ENTRY = Metric("gray", +1, "images", gray, decimals=1, protocol={"pixels": lambda inputs: f"of {inputs.samples.count}"})


@pytest.fixture
def _gray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as if ENTRY were part of METRICS."""
    monkeypatch.setitem(METRICS, ENTRY.name, ENTRY)
    for score, direction in ENTRY.directions.items():
        monkeypatch.setitem(DIRECTION, score, direction)


@pytest.mark.usefixtures("_gray")
def test_one_entry_adds_a_metric_to_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_snapshot(small_generator(), tmp_path / "snapshot")
    command = ["evaluate", tmp_path / "snapshot", "--num", 4, "--metrics", "gray"]
    assert sagan(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["gray"] < 255
    assert found["protocol"]["pixels"] == "of 4"
    assert sagan(*command) == 0
    assert f"gray                     {found['gray']:10.2f}" in capsys.readouterr().out
    assert MetricsLine.model_validate(found).scores == {"gray": found["gray"]}
    assert score_text("gray", 12.34) == "12.3"
    assert sagan("evaluate", tmp_path / "snapshot", "--metrics", "grey") == 2
    assert "did you mean gray?" in capsys.readouterr().err


@pytest.mark.usefixtures("_gray", "alone")
def test_one_entry_adds_a_metric_to_training(data: PreparedData, tmp_path: Path) -> None:
    config = tiny_config(
        f"data.source={data.folder}", "evaluate.every=1", "evaluate.num=4", "evaluate.metrics=[gray]",
        "evaluate.best=gray",
    )  # fmt: skip
    run = tiny_run(tmp_path / "run", config, data)
    assert run.evaluate is not None
    progress, scores = run.evaluate(tmp_path / "run", Progress(step=3), small_generator(), lambda line: None)
    assert (progress.best, progress.best_step) == (scores["gray"], 3)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["gray"] == scores["gray"]


def test_every_metric_ranks_generators_but_nearest() -> None:
    assert set(METRICS) - set(DIRECTION) == {"nearest"}
    assert {name for name, direction in DIRECTION.items() if direction < 0} == {"fid", "kid", "intra_fid"}


def test_the_protocol_has_the_fields_of_every_metric() -> None:
    fields = {field for metric in METRICS.values() for field in metric.protocol_fields}
    assert fields <= set(Protocol.model_fields)


@pytest.mark.parametrize(
    ("field", "scores"),
    [
        ("num", set(DIRECTION)),
        ("kid", {"kid"}),
        ("manifold", {"precision", "recall", "density", "coverage"}),
        ("lpips_sha256", {"lpips_diversity"}),
        ("backbone", {"fid", "kid", "is", "precision", "recall", "density", "coverage", "intra_fid"}),
    ],
)
def test_which_scores_a_field_decides(field: str, scores: set[str]) -> None:
    assert {score for score in DIRECTION if decides(field, score)} == scores

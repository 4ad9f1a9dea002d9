"""A new metric is one entry; evaluation results and protocols; labels of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import sagan
from hypothesis import given
from hypothesis import strategies as st
from small_generator import small_generator
from tiny import tiny_config, tiny_run

from sagan.data.dataset import PreparedData
from sagan.evaluation.registry import DIRECTION, METRICS, Computed, Inputs, Metric, decides
from sagan.evaluation.result import Protocol, Scores, labels_by_frequency, over_repeats
from sagan.experiments.runs import MetricsLine
from sagan.experiments.table import score_text
from sagan.runs.checkpoint import Progress
from sagan.runs.snapshot import save_snapshot


def gray(inputs: Inputs) -> Computed:
    return Computed({"gray": inputs.samples.read(torch.arange(2).numpy()).float().mean().item()})


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
    progress, scores = run.evaluate(
        tmp_path / "run", Progress(step=3), small_generator(), lambda line: None, lambda: False
    )
    assert (progress.best, progress.best_step) == (scores["gray"], 3)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["gray"] == scores["gray"]


def test_every_metric_ranks_generators_but_nearest() -> None:
    assert set(METRICS) - set(DIRECTION) == {"nearest"}
    assert {field for metric in METRICS.values() for field in metric.protocol_fields} <= set(Protocol.model_fields)
    assert {name for name, direction in DIRECTION.items() if direction < 0} == {"fid", "kid", "intra_fid"}


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
def test_which_scores_a_field_affects(field: str, scores: set[str]) -> None:
    assert {score for score in DIRECTION if decides(field, score)} == scores


def result(fid: float, seeds: str = "0-9", **protocol: Any) -> Scores:
    of = Protocol(images="generated", num=10, size=(32, 32), seeds=seeds, **protocol)
    return Scores({"fid": fid}, of, warnings=("10 samples: few",))


def test_a_result_is_one_json_object_with_scores_at_the_top() -> None:
    found = json.loads(json.dumps(result(12.5, truncation=0.7).to_dict()))
    assert (found["fid"], found["warnings"]) == (12.5, ["10 samples: few"])
    assert (found["protocol"]["truncation"], found["protocol"]["size"]) == (0.7, [32, 32])
    assert "backbone" not in found["protocol"]
    assert "spread" not in found


def test_repeats_give_mean_and_spread() -> None:
    found = over_repeats([result(1.0), result(3.0, "10-19")])
    assert found.values == {"fid": 2.0}
    assert found.spread == {"fid": pytest.approx(2**0.5)}
    assert found.protocol.seeds == "0-9,10-19"
    assert "± 1.4142" in found.to_table()
    assert "warning: 10 samples: few" in found.to_table()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any))
def test_as_many_samples_as_data_have_exactly_its_class_counts(counts: list[int]) -> None:
    labels = labels_by_frequency(np.array(counts), sum(counts))
    assert np.bincount(labels, minlength=len(counts)).tolist() == counts


def test_labels_are_balanced_at_every_length() -> None:
    assert labels_by_frequency(np.array([50, 50, 50]), 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    for count in (1, 7, 100):
        labels = [labels_by_frequency(np.array([5, 1, 3]), length) for length in (count, 200)]
        assert labels[0].tolist() == labels[1][:count].tolist()

"""Scores are put together where their protocols allow it, and ranked in the right direction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from written_runs import protocol, scored, write_run

from sagan.comparison.runs import read_runs
from sagan.comparison.scores import Comparison, compare, deciding_fields
from sagan.evaluation.choices import METRICS
from sagan.evaluation.metric_names import DIRECTION, PARAMETERS_OF
from sagan.evaluation.protocol import Protocol


def comparison(folder: Path, *lines: Sequence[dict[str, Any]], only: str | None = None) -> Comparison:
    """Of runs with these lines in their metrics.jsonl."""
    return compare(read_runs([write_run(folder / f"run{i}", scores=s) for i, s in enumerate(lines)]), only)


def groups(found: Comparison, metric: str) -> list[int | None]:
    return [series.group for run in range(len(found.runs)) for series in found.of(metric, run)]


def test_every_metric_has_a_direction() -> None:
    """Breaks when a metric is added that a comparison would pass over, or a field's name is misspelt."""
    assert set(METRICS) - {"nearest"} <= set(DIRECTION)  # nearest is neither better when it is high nor when low
    assert set(DIRECTION.values()) == {1, -1}
    assert {name for name, direction in DIRECTION.items() if direction < 0} == {"fid", "kid", "intra_fid"}
    assert set(PARAMETERS_OF) <= set(Protocol.model_fields)
    assert {metric for metrics in PARAMETERS_OF.values() for metric in metrics} <= set(DIRECTION)


@pytest.mark.parametrize("metric", DIRECTION)
def test_best_is_the_lowest_or_highest_and_the_earliest(metric: str, tmp_path: Path) -> None:
    """Breaks when the direction of a metric is turned round, or a later equal score counts as the best."""
    values = (0.4, 0.2, 0.6, 0.2, 0.6, 0.5)
    found = comparison(tmp_path, scored(*values, metric=metric), scored(0.3, metric=metric))
    series = found.of(metric, 0)[0]
    assert series.newest.value == 0.5
    assert series.best is not None
    assert (series.best.value, series.best.step) == ((0.2, 2000) if DIRECTION[metric] < 0 else (0.6, 3000))
    assert found.leaders(metric, 0) == {0}


@pytest.mark.parametrize(
    "change",
    [{"seeds": "5-9"}, {"versions": {}}, {"checkpoint_step": 9}, {"kid": "50 subsets"}, {"lpips": "vgg"}],
    ids=str,
)  # fmt: skip
def test_what_does_not_decide_a_fid_does_not_part_runs(change: dict[str, Any], tmp_path: Path) -> None:
    """Breaks when other seeds, versions, or parameters of another metric make FIDs incomparable."""
    assert groups(comparison(tmp_path, scored(3.0), scored(4.0, **change)), "fid") == [0, 0]


@pytest.mark.parametrize(
    "change",
    [{"num": 9}, {"labels": "uniform"}, {"reference_hash": "00"}, {"backbone_sha256": "00"}, {"truncation": 0.5}],
    ids=str,
)  # fmt: skip
def test_what_decides_a_fid_parts_runs(change: dict[str, Any], tmp_path: Path) -> None:
    """Breaks when FIDs of different protocols are put together."""
    found = comparison(tmp_path, scored(3.0), scored(4.0, **change))
    assert groups(found, "fid") == [0, 1]
    assert found.shared("fid") == [0]
    assert found.leaders("fid", 0) == found.leaders("fid", 1) == set()


def test_parameters_part_their_own_metric(tmp_path: Path) -> None:
    """Breaks when KIDs of other subsets, or scores of another backbone, are put together; or coherence is parted."""
    lines = [
        [{"step": 1, "fid": 3.0, "kid": 0.1, "coherence": 0.5, "protocol": protocol(kid=kid, backbone=backbone)}]
        for kid, backbone in (("100 subsets", "inception"), ("50 subsets", "inception"), ("100 subsets", "vgg16"))
    ]
    found = comparison(tmp_path, *lines)
    assert len(set(groups(found, "kid"))) == 3
    fid = groups(found, "fid")
    assert fid[0] == fid[1] != fid[2]
    assert len(set(groups(found, "coherence"))) == 1
    assert "kid" not in deciding_fields("fid", lines[0][0]["protocol"])


def test_what_has_no_protocol_is_compared_with_nothing(tmp_path: Path) -> None:
    """Breaks when scores of older versions get a best, a group or a leader."""
    old = [{"step": 600, "num": 300, "coherence": 0.1}, {"step": 1200, "num": 300, "coherence": 0.2}]
    found = comparison(tmp_path, old, old, scored(0.3, metric="coherence"))
    assert groups(found, "coherence") == [None, None, 0]
    assert found.of("coherence", 0)[0].best is None
    assert found.of("coherence", 0)[0].newest.value == 0.2
    assert found.leaders("coherence", 0) == set()


def test_groups_of_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    """Breaks when scores taken in training and at the end are mixed, or only one of them is shown."""
    lines = [[*scored(9.0, fid, num=1000), *scored(fid - 2, num=50000)] for fid in (7.0, 6.0)]
    found = comparison(tmp_path, *lines, scored(1.0, num=7))
    assert found.shared("fid") == [0, 1]  # more points first
    assert found.groups[0]["num"] == 1000
    assert not {"seeds", "versions", "checkpoint_step"} & set(found.groups[0])  # not of the group: they differ in it
    assert (found.leaders("fid", 0), found.leaders("fid", 1)) == ({1}, {1})
    alone = comparison(tmp_path / "alone", lines[0])
    assert alone.shared("fid") == [0, 1]  # of one run all


def test_leaders_can_be_equal_but_not_all(tmp_path: Path) -> None:
    """Breaks when one of two equal runs is called the best, or a run is that leads nobody."""
    assert comparison(tmp_path, scored(3.0, 5.0), scored(4.0, 3.0), scored(3.5)).leaders("fid", 0) == {0, 1}
    assert comparison(tmp_path / "alone", scored(3.0)).leaders("fid", 0) == set()
    assert comparison(tmp_path / "equal", scored(3.0), scored(3.0)).leaders("fid", 0) == set()


def test_a_step_that_is_measured_again_counts_once(tmp_path: Path) -> None:
    """Breaks when the luckier of two measurements of one step is chosen, or lines out of order mix up the newest."""
    found = comparison(tmp_path, [*scored(5.0, 4.0, 3.0), *scored(6.0, 7.0)], scored(5.0))
    (series,) = found.of("fid", 0)
    assert [(point.step, point.value) for point in series.points] == [(1000, 6.0), (2000, 7.0), (3000, 3.0)]
    late = [{"fid": 1.0, "protocol": protocol()}, *scored(5.0, 4.0)[::-1]]
    (series,) = comparison(tmp_path / "late", [*late[1:], late[0]]).of("fid")
    assert [point.step for point in series.points] == [None, 1000, 2000]


def test_one_metric_alone(tmp_path: Path) -> None:
    """Breaks when `only` lets others through."""
    line = {"step": 1, "fid": 1.0, "is": 2.0, "protocol": protocol()}
    assert comparison(tmp_path, [line], only="is").metrics() == ["is"]

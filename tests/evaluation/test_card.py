"""The score card: what it says, over repeats, and which protocols are comparable."""

import json

import pytest

from sagan.evaluation.result import EvaluationResult, Protocol, over_repeats, protocol_differences


def card(fid: float, seeds: str = "0-9", **protocol: object) -> EvaluationResult:
    return EvaluationResult({"fid": fid}, Protocol(images="generated", num=10, size=(32, 32), seeds=seeds, **protocol))


def test_a_card_is_one_json_object_with_metrics_at_the_top():
    """Breaks when a metric moves below the top level, or what does not apply is written as null."""
    found = json.loads(json.dumps(card(12.5, truncation=0.7).to_dict()))
    assert found["fid"] == 12.5
    assert found["protocol"]["truncation"] == 0.7
    assert found["protocol"]["size"] == [32, 32]
    assert "backbone" not in found["protocol"]
    assert "spread" not in found


def test_repeats_give_mean_and_spread():
    """Breaks when the spread is that of a population (divisor n), or the seeds of a repeat are lost."""
    found = over_repeats([card(1.0), card(3.0, "10-19")])
    assert found.values == {"fid": 2.0}
    assert found.spread == {"fid": pytest.approx(2**0.5)}
    assert found.protocol.seeds == "0-9,10-19"
    assert "± 1.4142" in found.to_table()


def test_a_warning_stands_in_card_and_table():
    """Breaks when a warning is only shown on the screen."""
    weak = EvaluationResult({"fid": 1.0}, card(1.0).protocol, warnings=("10 samples: few",))
    assert weak.to_dict()["warnings"] == ["10 samples: few"]
    assert "warning: 10 samples: few" in weak.to_table()


def test_what_changes_a_score_makes_protocols_differ_and_chance_does_not():
    """Breaks when another truncation is comparable, or other seeds or versions are not."""
    one = card(1.0).to_dict()["protocol"]
    assert protocol_differences(one, card(1.0, "10-19", versions={"torch": "9"}).to_dict()["protocol"]) == []
    assert protocol_differences(one, card(1.0, truncation=0.5).to_dict()["protocol"]) == ["truncation"]
    assert protocol_differences(one, {**one, "size": [64, 64]}) == ["size"]

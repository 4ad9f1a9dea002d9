"""`sagan bench scaling`: two real processes against one."""

import json
from pathlib import Path

import pytest
from command_line import sagan

from sagan.commands.bench_scaling import rate_of, timed_config
from sagan.config import load_config

TINY = [
    "--set=generator.channels=2", "--set=discriminator.channels=2", "--set=training.batch_size=4", "--device=cpu",
    "--set=generator.attention={8: self_attention}", "--set=discriminator.attention={8: self_attention}",
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_against_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when one of the two does not train, or the ratio is upside down."""
    assert sagan("bench", "scaling", *TINY, "--rounds", 1, "--steps", 40, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    one, two = found["images_per_second_1"], found["images_per_second_2"]
    assert found["ratio_efficiency"] == pytest.approx(two / (2 * one))
    assert 0 < found["ratio_efficiency"] < 2
    assert (found["batch_size_a_process"], found["processes"], found["threads_a_process"]) == (4, 2, 1)


def test_each_process_has_the_batch(tmp_path: Path) -> None:
    """Breaks when more processes share one batch (what is measured then is another thing), or data is prepared anew."""
    config = load_config(None, ["training.batch_size=6", "data.num_classes=0"])
    one, three = (timed_config(config, count, 8, tmp_path, "cpu") for count in (1, 3))
    assert (one.training.batch_size, three.training.batch_size) == (6, 18)
    assert (one.data, one.data.prepared, one.data.num_classes) == (three.data, str(tmp_path), 0)
    assert one.training.log_every == 2


def test_the_rate_leaves_out_the_start(tmp_path: Path) -> None:
    """Breaks when starting up counts: 100 images in 10 s, then 300 in 10 s."""
    lines = [{"kimg": 0.1, "images_per_second": 10.0}, {"kimg": 0.4, "images_per_second": 20.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rate_of(tmp_path) == pytest.approx(30.0)


def test_what_training_says_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a config that cannot be trained ends in a traceback of ours."""
    assert sagan("bench", "scaling", *TINY, "--rounds", 1, "--steps", 2, "--set=optim.accumulation=4",
                 "--set=evaluate.metrics=[nonsense]") == 2  # fmt: skip
    assert "training in 1 processes failed: sagan: evaluate.metrics" in capsys.readouterr().err

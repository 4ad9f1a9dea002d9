"""`sagan bench step`: ratios of variants that are taken in one run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import sagan

from sagan.commands.bench import default_names
from sagan.commands.step_variants import STEPS_A_ROUND, seconds_a_step

SMALL = [
    "--set=generator.channels=8", "--set=discriminator.channels=8", "--set=training.batch_size=2", "--rounds=2",
    "--set=generator.attention={8: self_attention}", "--set=discriminator.attention={8: self_attention}",
]  # fmt: skip


def test_default_is_the_project_against_the_plain_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the object lacks the ratio that the project promises, or says it of something else."""
    assert default_names(cuda=False)[:2] == ["plain", "project"]  # compiled takes minutes
    assert default_names(cuda=True) == ["plain", "project", "compiled", "cuda_graphs"]
    assert sagan("bench", "step", *SMALL, "--variants=plain,project", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["ratio_step"] == found["ratio_project_to_plain"]
    assert (found["resolution"], found["batch_size"], found["rounds"]) == (32, 2, 2)
    ratios = [key for key in found if key.startswith("ratio")]
    assert ratios == [
        "ratio_of_matmul_plain", "ratio_project_to_plain", "ratio_of_matmul_project", "ratio_step",
    ]  # fmt: skip
    assert all(found[f"images_per_second_{name}"] > 0 and found[f"spread_{name}"] >= 0 for name in ("plain", "project"))


def test_ratios_say_how_many_times_as_fast_as_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a variant does not run, or a ratio is upside down or to another one."""
    names = ["project", "plain", "unfolded", "contiguous", "two_passes", "without_norm"]
    assert sagan("bench", "step", *SMALL, "--json", "--variants", ",".join(names), "--rounds", 1) == 0
    found = json.loads(capsys.readouterr().out)
    rates = {name: found[f"images_per_second_{name}"] for name in names}
    expected = {f"ratio_{name}_to_project": rates[name] / rates["project"] for name in names[1:]}
    assert {key: found[key] for key in found if key.startswith("ratio") and "matmul" not in key} == pytest.approx(
        expected
    )
    shares = {name: found[f"gflops_{name}"] / found["gflops_matmul"] for name in names}
    assert {name: found[f"ratio_of_matmul_{name}"] for name in names} == pytest.approx(shares)
    assert all(0 < share < 1 for share in shares.values())


def test_rounds_are_interleaved() -> None:
    """Breaks when one variant is timed after the other, so that a machine that slows down decides; or not warmed up."""
    calls: list[str] = []
    steps = {name: partial(calls.append, name) for name in "ab"}
    seconds = seconds_a_step(steps, 3, torch.device("cpu"))
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(calls) == "ab" + 3 * ("a" * STEPS_A_ROUND + "b" * STEPS_A_ROUND)


def test_text_and_any_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when people get JSON, or an unconditional config at another resolution cannot be timed."""
    (tmp_path / "c.yaml").write_text("data: {resolution: 64, num_classes: 0}\noptim: {d_steps: 1}\n")
    options = [option.replace("{8:", "{16:") for option in SMALL]
    assert sagan("bench", "step", tmp_path / "c.yaml", *options, "--variants=plain,project") == 0
    out, err = capsys.readouterr()
    assert dict(line.split() for line in out.splitlines())["resolution"] == "64"
    assert "ratio_step" in out
    assert err.startswith("plain: two discriminator passes")

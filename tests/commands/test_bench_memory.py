"""`sagan bench memory`: cells that are measured, estimated, or end alone."""

import json

import pytest
import torch
from command_line import sagan

from sagan.commands.bench import Variant
from sagan.commands.bench_memory import Cell, cell_config
from sagan.commands.bench_result import aligned, lines_of, show
from sagan.commands.memory_cells import estimated_mib
from sagan.commands.step_variants import peak_of, stepper
from sagan.config import load_config

SMALL = ["generator.channels=16", "discriminator.channels=16", "data.num_classes=3", "optim.d_steps=1",
         "generator.attention={}", "discriminator.attention={}"]  # fmt: skip
CHANGES = [f"--set={setting}" for setting in SMALL]


def test_a_cell_is_the_config_at_its_resolution() -> None:
    """Breaks when the config's own networks are replaced, another resolution gets ones that do not fit it, or a
    config that is compiled cannot be measured."""
    config = load_config(None, [*SMALL, "training.compile=true", "training.cuda_graphs=true"])
    assert cell_config(config, Cell(32, True), 5).generator == config.generator
    other = cell_config(config, Cell(128, True), 5)
    assert (other.data.resolution, other.generator.channels, list(other.generator.attention)) == (128, 16, [32])
    assert (other.training.activation_checkpointing, other.training.batch_size) == (True, 5)
    assert not cell_config(config, Cell(128, False), 5).training.activation_checkpointing
    assert not other.training.compile


@pytest.mark.slow
def test_memory_grows_by_the_image() -> None:
    """Breaks when what a step is estimated to hold has little to do with what it holds."""
    config, cpu = load_config(None, [*SMALL, "training.batch_size=12"]), torch.device("cpu")
    counted = peak_of(stepper(config, cpu, Variant()), cpu)
    assert counted is not None
    assert 0.3 * counted < estimated_mib(config, cpu) < 1.3 * counted


@pytest.mark.slow
def test_what_does_not_fit_is_estimated_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a step beyond the limit is run, or one that is below it is not, or the first ends the second."""
    command = ["bench", "memory", *CHANGES, "--resolutions", "32", "--limit-gib", "0.03", "--json"]
    assert sagan(*command, "--batch", "32") == 0
    found = json.loads(capsys.readouterr().out)
    plain, less = found["cells"]
    assert plain["state"] == "too large"
    assert plain["estimated_mib"] > plain["limit_mib"] == pytest.approx(0.03 * 1024)
    assert less["state"] == "ok"
    assert less["estimated_mib"] < less["limit_mib"]
    assert 0 < less["counted_mib"] < 1.2 * less["peak_mib"]
    assert "ratio_memory_32" not in found


@pytest.mark.slow
def test_checkpointing_saves_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when resident memory does not fall as the counted tensors do, or neither does."""
    assert sagan("bench", "memory", *CHANGES, "--resolutions", "64", "--batch", "24", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio_counted_64"] < 0.7
    assert found["ratio_memory_64"] < 1


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a wrong resolution ends in a traceback, or after minutes."""
    assert sagan("bench", "memory", "--resolutions", "32,48") == 2
    assert "--resolutions: '48' is not one of 32, 64, 128, 256" in capsys.readouterr().err
    assert (
        sagan("bench", "memory", "--set", "training.compile=true", "--set", "training.activation_checkpointing=1") == 2
    )
    assert "training.compile and training.activation_checkpointing exclude each other" in capsys.readouterr().err


def test_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a benchmark prints anything beside its object, or a table's columns do not stand under each other."""
    result = {"name": 1, "ratio": 0.123456, "device": "cpu"}
    show(result, True, "text", "note")
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (result, "")
    show(result, False, note="note")
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (["name    1", "ratio   0.1235", "device  cpu"], "note\n")
    assert lines_of(result) == out.rstrip("\n")
    assert aligned([("a", "10"), ("long", "2")]) == "a     10\nlong   2"

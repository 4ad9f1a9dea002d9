"""`sagan bench throughput`: cells that are measured, fail, take too long, and that another call goes on with."""

import json
import time
from pathlib import Path

import pytest
import torch
from command_line import sagan
from tiny import tiny_config

from sagan.commands.bench import Variant
from sagan.commands.bench_throughput import Cell, cells, differences
from sagan.commands.step_variants import stepper
from sagan.commands.throughput_cells import measured
from sagan.config import replaced

SMALL = ["--set=generator.channels=4", "--set=discriminator.channels=4", "--precisions=no,tf32,bf16"]


def test_the_grid_is_ordered_by_what_is_wanted() -> None:
    """Breaks when a cell is lost or doubled, or losses are compared to a cell that comes later."""
    found = cells([8, 4], ["no", "bf16"], True)
    assert len(found) == len(set(found)) == 24
    assert found[:2] == [Cell(8, "no"), Cell(8, "bf16")]
    assert all(found.index(cell) >= found.index(cell.reference) for cell in found)
    assert {cell.variant.compiled for cell in cells([8], ["no"], False)} == {False}
    assert {cell.variant for cell in found if cell.form == "CUDA graphs" and cell.channels_last} == {
        Variant(precision=precision, compiled=True, cuda_graphs=True) for precision in ("no", "bf16")
    }


def test_cells_are_kept_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a cell is measured twice, one that needs a GPU fails, or a difference is to another cell."""
    command = ["bench", "throughput", *SMALL, "--out", tmp_path / "cells.jsonl", "--json", "--batch-sizes"]
    assert sagan(*command, "2") == 0
    first = json.loads(capsys.readouterr().out)
    assert {c["state"] for c in first["cells"] if c["precision"] == "tf32"} == {"skipped"}
    ok = {(c["precision"], c["channels_last"]): c for c in first["cells"] if c["state"] == "ok"}
    assert len(ok) == 4
    assert ok["no", True]["losses_differ_by"] == [0.0] * 5
    assert 0 <= ok["no", False]["losses_differ_by"][0] < 1e-4 < ok["bf16", True]["losses_differ_by"][0] < 1
    assert ok["bf16", False]["ratio_to_float32"] == pytest.approx(
        ok["bf16", False]["images_per_second"] / ok["no", True]["images_per_second"]
    )
    assert ok["no", True]["flops_an_image"] > 1e6
    assert first["ratio_fastest"] >= 1
    assert sagan(*command, "2,1") == 0
    second = json.loads(capsys.readouterr().out)
    assert second["cells"][:6] == first["cells"]
    assert [c["batch_size"] for c in second["cells"]] == [2] * 6 + [1] * 6


@pytest.mark.slow
def test_time_and_memory_end_cells_not_the_benchmark() -> None:
    """Breaks when a cell without memory or a cell that takes too long ends the others, or the time is exceeded."""
    config = tiny_config()
    start = time.monotonic()
    todo = [Cell(2, "no"), Cell(10**9, "no"), Cell(3, "no")]
    found = dict(measured(config, todo, start + 100, 60, {}))
    assert [row["state"] for row in found.values()] == ["ok", "out of memory", "ok"]
    start = time.monotonic()
    states = [row["state"] for _, row in measured(config, todo, start + 100, 1e-3, {})]
    assert states[0] == "out of time"
    assert len(states) == 3
    start = time.monotonic()
    assert [row["state"] for _, row in measured(config, todo[:1] * 50, start + 8, 60, {})][-1] == "not reached"
    assert time.monotonic() - start < 15


def test_bf16_is_another_precision_of_the_same_step() -> None:
    """Breaks when bfloat16 reaches no forward, or gradients are lost on the way: the losses part, but not far."""
    config = replaced(tiny_config(), {"training": {"batch_size": 4}})
    cpu = torch.device("cpu")
    losses = {}
    for precision in ("no", "bf16"):
        step = stepper(config, cpu, Variant(precision=precision))
        losses[precision] = [[float(x) for x in step().values()] for _ in range(3)]
    apart = differences({"losses": losses["bf16"]}, {"losses": losses["no"]})
    assert apart is not None
    assert 1e-5 < max(apart) < 0.3
    assert losses["no"][0] != losses["no"][2]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a misspelt option ends in a traceback, or a foreign file is written to."""
    (tmp_path / "other.txt").write_text("text\n")
    for options, message in (
        (["--batch-sizes", "8,x"], "--batch-sizes 8,x: expected positive numbers"),
        (["--precisions", "fp8"], "--precisions: unknown precision 'fp8'; known: no, tf32, bf16"),
        (["--out", tmp_path / "other.txt"], "not a file of `sagan bench throughput`"),
    ):
        assert sagan("bench", "throughput", *options) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "other.txt").read_text() == "text\n"
    for name in ("tf32", "cuda_graphs"):
        assert sagan("bench", "step", "--variants", f"plain,{name}") == 2
        assert f"--variants: {name} needs a CUDA device; leave it out" in capsys.readouterr().err

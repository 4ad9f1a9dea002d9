"""Training throughput by batch size, precision, layout and compilation: python benchmarks/throughput.py [CONFIG]."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import Any, get_args

import click
import common
import torch
from step import STUDIO32, Precision, TrainingStep, Variant

from sagan.config.load import make_config, replaced
from sagan.config.schema import Config

LOSSES, CHUNKS, CHUNK_SECONDS = 5, 3, 0.5
FORMS = ({}, {"compiled": True}, {"compiled": True, "cuda_graphs": True})
Cell = tuple[int, Variant]  # batch size


def grid(batch_sizes: list[int], precisions: list[Precision], compiled: bool) -> Iterator[Cell]:
    """All cells, most useful first: eager in channels last, then compiled, then contiguous."""
    for channels_last, form in product((True, False), FORMS if compiled else FORMS[:1]):
        for batch, precision in product(batch_sizes, precisions):
            yield batch, Variant(channels_last=channels_last, precision=precision, **form)


def measure(raw: dict[str, Any], cell: Cell) -> common.Row:
    """Losses of the first steps, then time and peak memory; runs in a child process."""
    batch, variant = cell
    config = replaced(make_config(raw), {"training": {"batch_size": batch}, "optim": {"accumulation": 1}})
    device = common.pick_device(config)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif variant.needs_cuda:
        return {"state": "skipped", "why": "needs a CUDA device"}
    torch._dynamo.reset()  # earlier cells count against the limit of recompilations
    step = TrainingStep(config, device, variant)
    losses = [[value.item() for value in step().values()] for _ in range(LOSSES)]
    count = max(1, min(100, round(CHUNK_SECONDS / common.timed(step))))
    seconds = common.interleaved({"step": step}, CHUNKS, count)[0]["step"]
    found: common.Row = {**common.about(device), "images_per_second": batch / median(seconds), "losses": losses}
    if not variant.compiled or device.type == "cuda":
        found["peak_mib"] = common.peak_mib(step, device)
    return found


def compared(found: dict[Cell, common.Row]) -> list[common.Row]:
    """All rows, each with its comparison to the float32 row of the same batch size."""
    rows = []
    for (batch, variant), row in found.items():
        reference, extra = found.get((batch, Variant()), {}), {}
        if "losses" in row and "losses" in reference:
            pairs = zip(row["losses"], reference["losses"], strict=True)
            extra["losses_differ_by"] = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in pairs]
            extra["ratio_to_float32"] = row["images_per_second"] / reference["images_per_second"]
        way = {name: getattr(variant, name) for name in ("precision", "channels_last", "compiled", "cuda_graphs")}
        rows.append({"batch_size": batch, **way, **row, **extra})
    return [{key: value for key, value in row.items() if key != "losses"} for row in rows]


@common.benchmark
@common.of_config(*STUDIO32)
@click.option("--batch-sizes", type=common.CommaSeparated(click.IntRange(1)), default="64,128,256,512",
              show_default=True)  # fmt: skip
@click.option("--precisions", type=common.CommaSeparated(click.Choice(get_args(Precision))), default="no,tf32,bf16",
              show_default=True, help="no: float32 throughout.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Also measure torch.compile, with and without CUDA graphs.")
@click.option("--seconds", type=float, default=300.0, show_default=True, help="Time limit for the whole call.")
@click.option("--cell-seconds", type=float, default=60.0, show_default=True, help="Time limit for one cell.")
def main(settings: Config, batch_sizes: list[int], precisions: list[Precision], compiled: bool, seconds: float,
         cell_seconds: float) -> common.Row:  # fmt: skip
    """Measure training throughput (images/s; default: studio32) over a grid of cells, within a time limit.

    losses_differ_by: largest difference from float32, eager, in each of the first five steps.
    """
    found: dict[Cell, common.Row] = {}
    cells = [*grid(batch_sizes, precisions, compiled)]
    for cell, row in common.cells_in_processes(partial(measure, settings.to_dict()), cells, seconds, cell_seconds):
        found[cell] = row
        click.echo(f"{cell}: {row.get('images_per_second', row['state'])}", err=True)
    rows = compared(found)
    result: common.Row = {"resolution": settings.data.resolution, "d_steps": settings.d_steps, "cells": rows}
    if timed_rows := [row for row in rows if "ratio_to_float32" in row]:
        result["ratio_fastest"] = max(timed_rows, key=lambda row: row["images_per_second"])["ratio_to_float32"]
    return result


if __name__ == "__main__":
    main()

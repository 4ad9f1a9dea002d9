"""Peak memory of a training step by resolution, with and without activation checkpointing: benchmarks/memory.py."""

import ctypes
import gc
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import common
import psutil
import torch
from common import MIB
from step import TrainingStep, Variant

from sagan.config.load import make_config, replaced
from sagan.config.schema import RESOLUTIONS, Config
from sagan.utils.system import peak_resident_mib

SMALL = ["generator.channels=32", "discriminator.channels=32", "training.batch_size=16", "data.num_classes=10"]
STEPS = 2  # the first allocates the optimizers' moments
Cell = tuple[int, bool]  # resolution, activation checkpointing


def cell_config(config: Config, cell: Cell, batch: int) -> Config:
    """The config at another resolution (with the default networks, as wide), with or without checkpointing."""
    raw, (resolution, checkpointing) = config.to_dict(), cell
    if resolution != config.data.resolution:
        raw["data"]["resolution"] = resolution
        for name in ("generator", "discriminator"):
            del raw[name]["widths"], raw[name]["attention"]
    raw["training"] |= {"activation_checkpointing": checkpointing, "batch_size": batch}
    raw["training"] |= {"compile": False, "cuda_graphs": False}
    raw["optim"]["accumulation"] = 1
    return make_config(raw)


def measure(raw: dict[str, Any], batch: int, limit_gib: float | None, cell: Cell) -> common.Row:
    """Peak memory of one cell, unless its estimate exceeds the limit; runs in a child process."""
    config = cell_config(make_config(raw), cell, batch)
    device = common.pick_device(config)
    limit = 0.8 * common.free_bytes(device) / MIB if limit_gib is None else 1024 * limit_gib
    estimate = estimated_mib(config, device)
    found: common.Row = {**common.about(device), "limit_mib": limit, "estimated_mib": estimate}
    if estimate > limit:
        return {**found, "state": "too large"}
    step = TrainingStep(config, device, Variant())
    return {**found, "peak_mib": resident_peak_mib(step, device), "counted_mib": common.peak_mib(step, device)}


def estimated_mib(config: Config, device: torch.device) -> float:
    """Extrapolate the peak of a step from batches of one and two."""
    small = [replaced(config, {"training": {"batch_size": batch}}) for batch in (1, 2)]
    one, two = (common.peak_mib(TrainingStep(each, device, Variant()), device) for each in small)
    return one + (config.training.batch_size - 1) * (two - one)


def resident_peak_mib(step: common.Step, device: torch.device) -> float:
    """Peak MiB of the first steps beyond the loaded networks: CUDA's allocator, else resident memory."""
    if device.type == "cuda":
        return common.peak_mib(lambda: [step() for _ in range(STEPS)], device)
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: return freed memory
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
    before = psutil.Process().memory_info().rss / MIB
    for _ in range(STEPS):
        step()
    return peak_resident_mib(resource.getrusage(resource.RUSAGE_SELF)) - before


@common.benchmark
@common.of_config(*SMALL)
@click.option("--resolutions", type=common.CommaSeparated(click.Choice(list(map(str, RESOLUTIONS)))),
              default="32,64,128,256", show_default=True)  # fmt: skip
@click.option("--batch", type=click.IntRange(1), help="Batch size (default: the config's).")
@click.option("--limit-gib", type=float, help="Skip steps estimated above this (default: 80 % of free memory).")
@click.option("--seconds", type=float, default=300.0, show_default=True, help="Time limit for one cell.")
def main(settings: Config, resolutions: list[str], batch: int | None, limit_gib: float | None,
         seconds: float) -> common.Row:  # fmt: skip
    """Measure each cell in its own process. `ratio_memory_R`: peak with over peak without checkpointing.

    peak_mib: beyond the loaded networks; counted_mib: of it, tensors; estimated_mib: from batches of 1 and 2.
    Resolutions other than the config's use the default networks.
    """
    size = batch or settings.training.batch_size
    work = partial(measure, settings.to_dict(), size, limit_gib)
    cells = [(side, checkpointing) for side in map(int, resolutions) for checkpointing in (False, True)]
    rows = [
        {"resolution": cell[0], "checkpointing": cell[1], **row}
        for each in cells
        for cell, row in common.cells_in_processes(work, [each], seconds, seconds)
    ]
    result: common.Row = {"batch_size": size, "cells": rows}
    for plain, less in zip(rows[::2], rows[1::2], strict=True):
        if plain["state"] == less["state"] == "ok":
            result[f"ratio_memory_{plain['resolution']}"] = less["peak_mib"] / plain["peak_mib"]
            result[f"ratio_counted_{plain['resolution']}"] = less["counted_mib"] / plain["counted_mib"]
    return result


if __name__ == "__main__":
    main()

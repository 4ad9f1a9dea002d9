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

from sagan.config.load import make_config
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
    form = {"activation_checkpointing": checkpointing, "compile": False, "cuda_graphs": False}
    raw["training"] |= {**form, "batch_size": batch}
    raw["optim"]["accumulation"] = 1
    return make_config(raw)


def measure(raw: dict[str, Any], batch: int, cell: Cell) -> common.Row:
    """Peak memory of one cell; runs in a child process."""
    config = cell_config(make_config(raw), cell, batch)
    device = common.pick_device(config)
    step = TrainingStep(config, device, Variant())
    found = {"peak_mib": resident_peak_mib(step, device), "counted_mib": common.peak_mib(step, device)}
    return {**common.about(device), **found}


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
@click.option("--seconds", type=float, default=300.0, show_default=True, help="Time limit for one cell.")
def main(settings: Config, resolutions: list[str], batch: int | None, seconds: float) -> common.Row:
    """Measure each cell in its own process. `ratio_memory_R`: peak with over peak without checkpointing.

    peak_mib: beyond the loaded networks; counted_mib: of it, tensors. Other resolutions use the default networks.
    """
    size = batch or settings.training.batch_size
    work = partial(measure, settings.to_dict(), size)
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

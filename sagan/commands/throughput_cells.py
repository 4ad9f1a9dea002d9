"""Cells of `sagan bench throughput`, measured in a process of their own, which may run out of memory, time or luck."""

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

from sagan.commands.bench_throughput import LOSSES, Cell
from sagan.commands.bench_worker import Row, Worker
from sagan.config import make_config, replaced
from sagan.settings import Config

WORK = "from sagan.commands.throughput_cells import work; work()"
CHUNKS, CHUNK_SECONDS = 3, 0.5


def measured(
    config: Config, cells: list[Cell], deadline: float, cell_seconds: float, about: dict[str, Any]
) -> Iterator[tuple[Cell, Row]]:
    """Every cell with what was measured, in order; `about` is given what the process says of its device.

    A process that dies or takes too long over a cell is ended, and another goes on with the next one.
    """
    left = list(cells)
    while left and time.monotonic() < deadline:
        with Worker(WORK, {"config": config.to_dict(), "cells": [asdict(cell) for cell in left]}) as worker:
            greeting = worker.read(deadline - time.monotonic())
            if isinstance(greeting, str):
                why = worker.what_happened(greeting)
                yield from ((left.pop(0), why) for _ in range(len(left)))
                return
            about |= greeting
            while left:
                row = worker.read(min(cell_seconds, deadline - time.monotonic()))
                if isinstance(row, str) and time.monotonic() >= deadline:
                    break
                yield left.pop(0), worker.what_happened(row) if isinstance(row, str) else row
                if isinstance(row, str):
                    break
    for cell in left:
        yield cell, {"state": "not reached"}


def work() -> None:
    """The process: a line about the device, then one for each cell of the task on stdin."""
    task = json.load(sys.stdin)
    import torch

    from sagan.commands.machine import bench_device

    config = make_config(task["config"])
    device = bench_device(config)
    _tell(_device(device))
    for cell in task["cells"]:
        if cell["form"] != "eager":
            torch._dynamo.reset()  # or the cells before count against its limit of compilations, and it stays eager
        try:
            _tell(_cell(config, Cell(**cell), device))
        except (torch.OutOfMemoryError, MemoryError):
            _tell({"state": "out of memory"})
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            _tell({"state": "out of memory"})
        if device.type == "cuda":
            gc.collect()  # cells hold themselves in circles through their optimisers
            torch.cuda.empty_cache()


def _tell(row: Row) -> None:
    print(json.dumps(row), flush=True)


def _device(device: Any) -> Row:
    import torch

    from sagan.commands.machine import product
    from sagan.commands.step_variants import timed

    about: Row = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
        multiply, operations = product(device, torch.bfloat16)
        timed(multiply, 3, device)
        about["bf16_matmul_tflops"] = 10 * operations / timed(multiply, 10, device) / 1e12
    return about


def _cell(config: Config, cell: Cell, device: Any) -> Row:
    """One cell: losses of the first steps, then time and peak memory of further ones."""
    import torch

    from sagan.commands.step_variants import peak_of, stepper, timed

    variant = cell.variant
    if variant.needs_cuda and device.type != "cuda":
        return {"state": "skipped", "why": f"{'TF32' if cell.precision == 'tf32' else cell.form} needs a CUDA device"}
    config = replaced(config, {"training": {"batch_size": cell.batch_size}, "optim": {"accumulation": 1}})
    step = stepper(config, device, variant)
    losses: list[list[float]] = []
    first = timed(lambda: losses.append(_numbers(step())), 1, device)
    while len(losses) < LOSSES:
        losses.append(_numbers(step()))
    one = timed(step, 1, device)
    count = max(1, min(100, round(CHUNK_SECONDS / one)))
    seconds = [timed(step, count, device) / count for _ in range(CHUNKS)]
    eager = cell == cell.reference
    return {
        "state": "ok",
        "images_per_second": cell.batch_size / median(seconds),
        "spread": max(seconds) / min(seconds) - 1,
        "seconds_first_step": first,
        "peak_mib": peak_of(step, device, variant.compiled),
        **({"allocated_mib": torch.cuda.max_memory_allocated() / 2**20} if device.type == "cuda" else {}),
        "losses": losses,
        **({"flops_an_image": _flops(step) / cell.batch_size} if eager else {}),
    }


def _numbers(losses: dict[str, Any]) -> list[float]:
    return [float(losses[name]) for name in ("d_loss", "g_loss")]


def _flops(step: Any) -> int:
    """Operations of convolutions and matrix products in one step (two a multiply-add), as it computes them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()

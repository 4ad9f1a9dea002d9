"""`sagan bench memory`: the most a training step holds, with and without activation checkpointing, by resolution."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagan.commands.bench_result import aligned, show
from sagan.commands.bench_worker import Row, Worker
from sagan.config import load_config, make_config
from sagan.errors import UserError
from sagan.progress import track
from sagan.resolutions import RESOLUTIONS
from sagan.settings import Config

WORK = "from sagan.commands.memory_cells import work; work()"
SMALL = ["generator.channels=32", "discriminator.channels=32", "training.batch_size=16", "data.num_classes=10"]
SHARE = 0.8  # of the memory that is free, where nobody sets a limit
NOTE = (
    "MiB beyond the loaded networks: activations, gradients, Adam's two moments, what kernels use; in brackets tensors "
    "alone; other resolutions than the config's have the default networks; about: by batches of 1 and 2, not run"
)


@dataclass(frozen=True)
class Options:
    """As the command line gives them. `limit_gib`: what a step may hold; None: 80 % of what is free."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    resolutions: str = "32,64,128,256"
    batch: int | None = None
    limit_gib: float | None = None
    seconds: float = 300.0
    as_json: bool = False


@dataclass(frozen=True)
class Cell:
    """A step at a resolution, with or without activation checkpointing."""

    resolution: int
    recompute: bool


def bench_memory_command(options: Options) -> None:
    """Measure every cell in a process of its own and print a table, or one object.

    A cell that would exceed the limit is not run; one that does against its estimate runs out of memory by itself.
    `ratio_memory_R`: what is held with checkpointing, as a part of what is held without it; `ratio_counted_R`: by
    counting the tensors, which is the same in every run.
    """
    config = load_config(options.config, [*(SMALL if options.config is None else ()), *options.overrides])
    sides = _resolutions(options.resolutions)
    batch = options.batch or config.training.batch_size
    configs = {
        cell: cell_config(config, cell, batch) for side in sides for cell in (Cell(side, False), Cell(side, True))
    }
    found = {
        cell: _measured(configs[cell], options) for cell in track(configs, len(configs), "steps in their processes")
    }
    rows = [{**asdict(cell), **row} for cell, row in found.items()]
    result: dict[str, Any] = {"batch_size": batch, "cells": rows}
    for side in sides:
        plain, less = (found[Cell(side, recompute)] for recompute in (False, True))
        if plain["state"] == less["state"] == "ok":
            result[f"ratio_memory_{side}"] = less["peak_mib"] / plain["peak_mib"]
            result[f"ratio_counted_{side}"] = less["counted_mib"] / plain["counted_mib"]
    show(result, options.as_json, _table(result, found, sides), NOTE)


def cell_config(config: Config, cell: Cell, batch: int) -> Config:
    """The config at the cell's resolution: its own networks, or at another one those of the defaults, as wide."""
    raw = config.to_dict()
    if cell.resolution != config.data.resolution:
        raw["data"]["resolution"] = cell.resolution
        for name in ("generator", "discriminator"):
            del raw[name]["widths"], raw[name]["attention"]
    raw["training"] |= {"activation_checkpointing": cell.recompute, "batch_size": batch}
    raw["training"] |= {"compile": False, "cuda_graphs": False}
    raw["optim"]["accumulation"] = 1
    return make_config(raw)


def _measured(config: Config, options: Options) -> Row:
    """The row of one cell: "ok" with `peak_mib`, or "too large" with `estimated_mib`, or what went wrong."""
    with Worker(WORK, {"config": config.to_dict(), "limit_gib": options.limit_gib, "share": SHARE}) as worker:
        row = worker.read(options.seconds)
        return worker.what_happened(row) if isinstance(row, str) else row


def _table(result: dict[str, Any], found: dict[Cell, Row], sides: list[int]) -> str:
    rows: list[tuple[str, ...]] = [
        (f"MiB of a step of {result['batch_size']} images", "plain", "checkpointed", "ratio", "of tensors")
    ]
    for side in sides:
        cells = [_text(found[Cell(side, recompute)]) for recompute in (False, True)]
        ratios = [result.get(f"ratio_{what}_{side}") for what in ("memory", "counted")]
        rows.append((f"{side}x{side}", *cells, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)))
    return aligned(rows)


def _text(row: Row) -> str:
    if row["state"] == "ok":
        return f"{row['peak_mib']:.0f} ({row['counted_mib']:.0f})"
    if row["state"] == "too large":
        return f"about {row['estimated_mib']:.0f}"
    return f"{row['state']}{': ' + row['why'] if row.get('why') else ''}"


def _resolutions(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if wrong := [word for word in words if word not in map(str, RESOLUTIONS)]:
        raise UserError(f"--resolutions: {wrong[0]!r} is not one of {', '.join(map(str, RESOLUTIONS))}")
    return sorted({int(word) for word in words})

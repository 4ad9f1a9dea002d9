"""`sagan bench throughput`: images/s, memory and losses of the training step, by batch size and way to compute it."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from sagan.commands.bench import DEFAULT, Precision, Variant
from sagan.commands.bench_result import show
from sagan.config import load_config
from sagan.errors import UserError
from sagan.files import append_json_line, check_file_place
from sagan.settings import Config

Form = Literal["eager", "compiled", "CUDA graphs"]
LOSSES = 5  # steps whose losses are compared
LEGEND = "loss 1, loss 5: largest difference to float32, eager, in the first step and in the first five"


@dataclass(frozen=True)
class Options:
    """As the command line gives them. `seconds`: in all; `cell_seconds`: the most that one cell may take."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    batch_sizes: str = "64,128,256,512"
    precisions: str = "no,tf32,bf16"
    compile: bool = False
    seconds: float = 300.0
    cell_seconds: float = 60.0
    out: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Cell:
    """One way to compute the step at one batch size."""

    batch_size: int
    precision: Precision
    channels_last: bool = True
    form: Form = "eager"

    @property
    def variant(self) -> Variant:
        return Variant(
            channels_last=self.channels_last,
            precision=self.precision,
            compiled=self.form != "eager",
            cuda_graphs=self.form == "CUDA graphs",
        )

    @property
    def reference(self) -> "Cell":
        """What its losses are compared to: float32, eager."""
        return Cell(self.batch_size, "no")


def bench_throughput_command(options: Options) -> None:
    """Measure cell by cell, print each as it is done, stop in time; `options.out` keeps cells for the next call.

    Images of data a second in the whole step (all discriminator updates, generator, average). A cell that runs out of
    memory or time, or fails, says so and the others go on.
    """
    config = load_config(options.config, [*(DEFAULT if options.config is None else ()), *options.overrides])
    todo = cells(_batch_sizes(options.batch_sizes), _precisions(options.precisions), options.compile)
    if options.out is not None:
        check_file_place(options.out)
    key = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    found = _kept(options.out, key)

    from sagan.commands.throughput_cells import measured

    todo = [cell for cell in todo if cell not in found]
    say = sys.stderr if options.as_json else sys.stdout
    print(_line(["batch", "precision", "layout", "", "images/s", "spread", "peak MiB", "loss 1", "loss 5"]), file=say)
    for cell, row in found.items():
        print(_text(cell, row, found), file=say)
    about: dict[str, Any] = {}
    for cell, row in measured(config, todo, time.monotonic() + options.seconds, options.cell_seconds, about):
        found[cell] = row = {"device": about.get("device", ""), **row}
        _check_device(found, row["device"], options.out)
        print(_text(cell, row, found), file=say, flush=True)
        if options.out is not None and row["state"] != "not reached":
            append_json_line(options.out, {"config": key, **asdict(cell), **row})
    show(_result(config, found, about), options.as_json, LEGEND)


def cells(batch_sizes: list[int], precisions: list[Precision], compiled: bool) -> list[Cell]:
    """The grid, in the order of what is wanted most: eager and channels last, compiled, contiguous maps.

    Losses are compared to float32 in channels last, so that comes first.
    """
    forms: tuple[Form, ...] = get_args(Form) if compiled else ("eager",)
    order: list[Cell] = []
    for channels_last, form in product((True, False), forms):
        grid = product(batch_sizes, sorted(precisions, key=get_args(Precision).index, reverse=form != "eager"))
        order += [Cell(batch, precision, channels_last, form) for batch, precision in grid]
    return order


def differences(row: dict[str, Any], reference: dict[str, Any] | None) -> list[float] | None:
    """Of each of the first steps, the largest difference of d_loss and g_loss to the reference's."""
    if reference is None or not row.get("losses") or not reference.get("losses"):
        return None
    pairs = zip(row["losses"], reference["losses"], strict=True)
    return [max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]


def _result(config: Config, found: dict[Cell, dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """One object: machine, cells, and of the fastest one how many times as fast as its reference it is."""
    rows = []
    for cell, row in found.items():
        apart = differences(row, found.get(cell.reference))
        extra: dict[str, Any] = {} if apart is None else {"losses_differ_by": apart}
        reference, rate = found.get(cell.reference, {}), row.get("images_per_second")
        if rate and reference.get("images_per_second"):
            extra["ratio_to_float32"] = rate / reference["images_per_second"]
        flops = reference.get("flops_an_image")
        if rate and flops:
            extra["tflops"] = rate * flops / 1e12
            if about.get("bf16_matmul_tflops"):
                extra["ratio_of_bf16_matmul"] = extra["tflops"] / about["bf16_matmul_tflops"]
        rows.append({**asdict(cell), **row, **extra})
    fastest = max((row for row in rows if "ratio_to_float32" in row), key=lambda r: r["images_per_second"], default={})
    return {
        **about,
        "resolution": config.data.resolution,
        "d_steps": config.d_steps,
        "cells": rows,
        **({"ratio_fastest": fastest["ratio_to_float32"]} if fastest else {}),
    }


def _text(cell: Cell, row: dict[str, Any], found: dict[Cell, dict[str, Any]]) -> str:
    name = [
        str(cell.batch_size),
        {"no": "float32"}.get(cell.precision, cell.precision),
        "channels last" if cell.channels_last else "contiguous",
        cell.form,
    ]
    if row["state"] != "ok":
        return f"{_line(name)}  {row['state']}{': ' + row['why'] if row.get('why') else ''}"
    apart = differences(row, found.get(cell.reference))
    peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    numbers = ["-", "-"] if apart is None else [f"{apart[0]:.1e}", f"{max(apart):.1e}"]
    return _line([*name, f"{row['images_per_second']:.1f}", f"{row['spread']:.1%}", peak, *numbers])


def _line(words: list[str]) -> str:
    return "  ".join(
        word.ljust(width) if 0 < i < 4 else word.rjust(width)
        for i, (word, width) in enumerate(zip(words, (5, 9, 13, 11, 10, 7, 8, 8, 8), strict=False))
    )


def _kept(path: Path | None, key: str) -> dict[Cell, dict[str, Any]]:
    """Cells of this config that an earlier call wrote; those that ran out of time are measured again."""
    if path is None or not path.is_file():
        return {}
    return {cell: row for cell, row in _rows(path, key) if row["state"] in ("ok", "out of memory", "skipped")}


def _rows(path: Path, key: str) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            cell = Cell(*(row.pop(name) for name in Cell.__dataclass_fields__))
            if row.pop("config") == key:
                yield cell, row
        except (ValueError, KeyError, AttributeError):
            raise UserError(f"{path}: not a file of `sagan bench throughput`; name another with --out") from None


def _check_device(found: dict[Cell, dict[str, Any]], device: str, path: Path | None) -> None:
    if other := {row["device"] for row in found.values()} - {device, ""}:
        raise UserError(f"{path}: measured on {min(other)}, this is {device}; name another --out")


def _batch_sizes(text: str) -> list[int]:
    sizes = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if min(sizes) < 1:
        raise UserError(f"--batch-sizes {text}: expected positive numbers, such as 64,128")
    return sizes


def _precisions(text: str) -> list[Precision]:
    known: tuple[Precision, ...] = get_args(Precision)
    names = [word.strip() for word in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--precisions: unknown precision {unknown[0]!r}; known: {', '.join(known)}")
    return [name for name in known if name in names]

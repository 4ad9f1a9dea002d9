"""Run folders as `sagan train` and `sagan evaluate` write them, without networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagan.config.load import make_config
from sagan.evaluation.result import Protocol
from sagan.runs.run_dir import open_run
from sagan.utils.images import image_grid, save_png
from sagan.utils.io import append_json_line

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCH = 64  # the default batch size


def protocol(**changes: Any) -> dict[str, Any]:
    """A protocol as in metrics.jsonl."""
    fields = {
        "images": "generated", "num": 10000, "size": (32, 32), "seeds": "0-9999", "labels": "reference",
        "weights": "averaged", "batch_norm": "running", "reference": "cifar10", "reference_hash": "ab" * 32,
        "reference_count": 50000, "backbone": "inception", "backbone_sha256": "cd" * 32,
        "versions": {"torch": "2.15"},
    }  # fmt: skip
    return Protocol.model_validate(fields | changes).model_dump(mode="json", exclude_none=True)


def write_run(
    folder: Path, *overrides: str, scores: Sequence[dict[str, Any]] = (), losses: Sequence[float] = (),
    class_names: Sequence[str] = CIFAR10, content: str = "ab",
) -> Path:  # fmt: skip
    """A run with these lines in metrics.jsonl, and one line in log.jsonl every 100 steps."""
    about = {"content_hash": content * 32, "images": 50000, "class_names": list(class_names)}
    open_run(folder, make_config({}, list(overrides)), about)
    for line in scores:
        append_json_line(folder / "metrics.jsonl", line)
    for number, loss in enumerate(losses, 1):
        append_json_line(folder / "log.jsonl", {"step": 100 * number, "d_loss": loss, "g_loss": -loss})
    return folder


def scored(*values: float, metric: str = "fid", every: int = 1000, **changes: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, one per value, at steps `every` apart, under `protocol(**changes)`."""
    return [{"step": every * i, metric: value, "protocol": protocol(**changes)} for i, value in enumerate(values, 1)]


def write_grid(run: Path, step: int, color: Sequence[int], rows: int = 4, columns: int = 8, size: int = 32) -> None:
    """A sample grid of one color, and beside it the attention figure, which is none."""
    images = np.full((rows * columns, size, size, 3), color, np.uint8)
    save_png(run / "samples" / f"{step:08d}.png", image_grid(images, columns, scale=max(1, 64 // size)))
    save_png(run / "samples" / f"{step:08d}-attention.png", images[0])

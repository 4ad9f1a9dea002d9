"""`sagan bench data`: preparing images, feeding a training step, memory while reading a large prepared array."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sagan.commands.bench import DEFAULT
from sagan.commands.bench_result import show
from sagan.config import load_config

ROUNDS = 3
NOTE = (
    "plain: Pillow's open, convert and resize in one process; wait: for a batch and for its conversion; anonymous: "
    "memory of the process; file: pages of the array, which the system takes back when it needs them"
)


@dataclass(frozen=True)
class Options:
    """As the command line gives them. `images`: pictures to prepare; `array_mib`: of the array that is read."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    images: int = 2000
    steps: int = 8
    array_mib: int = 1024
    as_json: bool = False


def bench_data_command(options: Options) -> None:
    """Print images/s of `prepare`, seconds that a step waits for data, and memory while a whole array is read.

    `ratio_prepare`: rate of a core as a part of the plain decoder's, by the clock; `ratio_prepare_processor`: by the
    time of processors, which a busy machine does not change. `ratio_wait`: the part of its time that training waits;
    `ratio_resident`: most anonymous memory that reading took, as a part of the array's size.
    """
    config = load_config(options.config, [*(DEFAULT if options.config is None else ()), *options.overrides])
    side, cores = config.data.resolution, os.cpu_count() or 1
    result: dict[str, Any] = {"resolution": side, "cores": cores}
    from sagan.commands.data_variants import growth_while_reading, seconds_of_feeding, seconds_of_preparing

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grown = growth_while_reading(folder / "large", options.array_mib, side)
        seconds, data = seconds_of_preparing(folder, options.images, side, ROUNDS)
        step, wait = seconds_of_feeding(config, data, options.steps)
    rates = {form: options.images / median(took.wall for took in times) for form, times in seconds.items()}
    pairs = list(zip(seconds["plain"], seconds["prepare"], strict=True))
    result |= {
        "images": options.images,
        "images_per_second_plain": rates["plain"],
        "images_per_second_prepare_a_core": rates["prepare"] / cores,
        "ratio_prepare": median(a.wall / b.wall for a, b in pairs) / cores,
        "ratio_prepare_processor": median(a.processor / b.processor for a, b in pairs),
        "batch_size": config.training.batch_size,
        "seconds_step": step,
        "seconds_wait": wait,
        "ratio_wait": wait / (step + wait),
        "array_mib": options.array_mib,
    }
    if grown is not None:
        result |= {
            "anonymous_mib": grown.anonymous_mib,
            "file_mib": grown.file_mib,
            "ratio_resident": grown.anonymous_mib / options.array_mib,
        }
    show(result, options.as_json, note=NOTE)

"""Image preparation and data loading: python benchmarks/data.py."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import common
import numpy as np
from PIL import Image
from step import STUDIO32, TrainingStep, Variant

from sagan.config.schema import Config
from sagan.data.dataset import Prefetcher, PreparedData
from sagan.data.prepare import prepare
from sagan.training.batches import Batches
from sagan.utils.io import make_folder

ROUNDS, PICTURE = 3, 256


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Write images with coarse and fine features, half JPEG, half PNG."""
    make_folder(folder)
    paths = [folder / f"{i:06d}.{'jpg' if i % 2 else 'png'}" for i in range(count)]
    for i, path in enumerate(paths):
        shape, rng = (PICTURE, PICTURE), np.random.default_rng(i)
        coarse, fine = (Image.fromarray(rng.integers(256, size=(n, n, 3)).astype(np.uint8)) for n in (4, 32))
        Image.blend(coarse.resize(shape), fine.resize(shape), 0.3).save(path)
    return paths


def time_preparing(folder: Path, count: int, resolution: int) -> tuple[dict[str, list[float]], PreparedData]:
    """Seconds of a plain decoder and of `prepare`, and the prepared data."""
    paths = make_pictures(folder / "pictures", count)

    def plain() -> None:
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS))

    def prepared() -> PreparedData:
        out = Path(tempfile.mkdtemp(dir=folder)) / "prepared"
        return prepare(str(folder / "pictures"), out, resolution, report=lambda line: None)

    return common.interleaved({"plain": plain, "prepare": prepared}, ROUNDS, repeat=1)[0], prepared()


def time_feeding(config: Config, data: PreparedData, steps: int) -> tuple[float, float]:
    """Seconds per training step, and seconds spent waiting for batches."""
    device = common.pick_device(config)
    step = TrainingStep(config, device, Variant(channels_last=config.training.channels_last))
    batches = Batches(
        config.seed, config.training.batch_size, config.optim.accumulation, 0, 1, device, config.generator.z_dim, 0,
        config.augment.policy, config.data.flip, config.training.channels_last,
    )  # fmt: skip
    worked, waited = [], []
    with Prefetcher(batches.fetch(data), 0, (steps + 1) * config.d_steps) as reader:
        for i in range(steps + 1):
            start = time.perf_counter()
            for update in range(i * config.d_steps, (i + 1) * config.d_steps):
                batches.reals(update, next(reader))
            waited.append(time.perf_counter() - start)
            worked.append(common.timed(step))
    return sum(worked[1:]) / steps, sum(waited[1:]) / steps  # the first step warms up


@common.benchmark
@common.of_config(*STUDIO32)
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="Pictures to prepare.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Training steps to feed.")
def main(settings: Config, images: int, steps: int) -> common.Row:
    """Measure the data pipeline.

    `ratio_prepare`: throughput per core relative to Pillow's open, convert and resize in one process; `ratio_wait`:
    share of training time spent waiting for a batch and its conversion.
    """
    side, cores = settings.data.resolution, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        seconds, data = time_preparing(Path(name), images, side)
        step, wait = time_feeding(settings, data, steps)
    return {
        "resolution": side, "cores": cores, "images": images,
        "images_per_second_plain": images / median(seconds["plain"]),
        "images_per_second_prepare_a_core": images / median(seconds["prepare"]) / cores,
        "ratio_prepare": common.ratio(seconds["plain"], seconds["prepare"]) / cores,
        "batch_size": settings.training.batch_size, "seconds_step": step, "seconds_wait": wait,
        "ratio_wait": wait / (step + wait),
    }  # fmt: skip


if __name__ == "__main__":
    main()

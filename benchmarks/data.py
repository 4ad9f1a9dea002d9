"""Image preparation, data loading, and memory while reading a large prepared array: python benchmarks/data.py."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import common
import numpy as np
import psutil
from PIL import Image
from step import STUDIO32, TrainingStep, Variant

from sagan.config.schema import Config
from sagan.data.dataset import Manifest, Prefetcher, PreparedData, indices
from sagan.data.prepare import prepare
from sagan.training.batches import Batches
from sagan.utils.io import make_folder, write_json

ROUNDS, PICTURE, BATCH = 3, 256, 64
NOTE = (
    "plain: Pillow's open, convert and resize in one process; wait: for a batch and its conversion; anonymous: process "
    "memory; file: reclaimable pages of the array"
)


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Write images with coarse and fine features, half JPEG, half PNG."""
    make_folder(folder)
    paths = [folder / f"{i:06d}.{'jpg' if i % 2 else 'png'}" for i in range(count)]
    for i, path in enumerate(paths):
        rng = np.random.default_rng(i)
        layers = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (4, 32)]
        coarse, fine = (layer.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC) for layer in layers)
        Image.blend(coarse, fine, 0.3).save(path)
    return paths


def time_preparing(folder: Path, count: int, resolution: int) -> tuple[dict[str, list[float]], PreparedData]:
    """Wall and CPU ("_cpu") seconds of a plain decoder and of `prepare`, and the prepared data."""
    paths, seconds = make_pictures(folder / "pictures", count), {}
    for i in range(ROUNDS):
        marks = [(time.perf_counter(), time.process_time())]
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS))
        marks.append((time.perf_counter(), time.process_time()))
        data = prepare(str(folder / "pictures"), folder / f"prepared{i}", resolution, report=lambda line: None)
        marks.append((time.perf_counter(), time.process_time()))
        for name, start, end in (("plain", *marks[:2]), ("prepare", *marks[1:])):
            seconds.setdefault(name, []).append(end[0] - start[0])
            seconds.setdefault(f"{name}_cpu", []).append(end[1] - start[1])
    return seconds, data


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


def growth_while_reading(folder: Path, mib: int, resolution: int) -> tuple[float, float]:
    """Growth (MiB) of anonymous and of file-backed memory while reading an array of `mib` MiB in training order."""
    count = max(1, mib * common.MIB // (3 * resolution**2))
    make_folder(folder)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, resolution, resolution, 3))
    np.save(folder / "labels.npy", np.zeros(count, np.int64))
    manifest = Manifest(
        resolution=resolution, count=count, num_classes=0, class_names=(), class_counts=(), source="benchmark",
        resize="crop", skip_bad=False, skipped=0, fingerprint="", content_hash="",
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    data = PreparedData.open(folder)
    indices(0, len(data), 0, 1)  # allocates the order of the epoch
    resident = [_resident()]
    for start in range(0, len(data), BATCH):
        data.gather(indices(0, len(data), start, min(BATCH, len(data) - start)))
        resident.append(_resident())
    anonymous, file = (max(each) - each[0] for each in zip(*resident, strict=True))
    return anonymous, file


def _resident() -> tuple[float, float]:
    memory = psutil.Process().memory_info()
    shared = getattr(memory, "shared", 0)  # Linux: file-backed pages
    return (memory.rss - shared) / common.MIB, shared / common.MIB


@click.command()
@common.of_config(*STUDIO32)
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="Pictures to prepare.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Training steps to feed.")
@click.option("--array-mib", type=click.IntRange(1), default=1024, show_default=True, help="Prepared data to read.")
@common.as_json
def main(settings: Config, images: int, steps: int, array_mib: int, as_json: bool) -> None:
    """Measure the data pipeline.

    `ratio_prepare`: throughput per core relative to a plain decoder; `ratio_wait`: share of training time spent waiting
    for data; `ratio_resident`: growth of anonymous memory relative to the size of the array.
    """
    side, cores = settings.data.resolution, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        anonymous, file = growth_while_reading(Path(name) / "large", array_mib, side)
        seconds, data = time_preparing(Path(name), images, side)
        step, wait = time_feeding(settings, data, steps)
    result: common.Row = {
        "resolution": side, "cores": cores, "images": images,
        "images_per_second_plain": images / median(seconds["plain"]),
        "images_per_second_prepare_a_core": images / median(seconds["prepare"]) / cores,
        "ratio_prepare": common.ratio(seconds["plain"], seconds["prepare"]) / cores,
        "ratio_prepare_processor": common.ratio(seconds["plain_cpu"], seconds["prepare_cpu"]),
        "batch_size": settings.training.batch_size, "seconds_step": step, "seconds_wait": wait,
        "ratio_wait": wait / (step + wait), "array_mib": array_mib, "anonymous_mib": anonymous, "file_mib": file,
        "ratio_resident": anonymous / array_mib,
    }  # fmt: skip
    common.show(result, as_json, NOTE)


if __name__ == "__main__":
    common.run(main)

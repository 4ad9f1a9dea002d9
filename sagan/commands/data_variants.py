"""What `sagan bench data` measures: preparation beside a plain decoder, waiting beside real steps, memory."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sagan.commands.machine import bench_device, memory_of_process
from sagan.data.dataset import Manifest, PreparedData
from sagan.data.order import indices
from sagan.data.prefetch import Prefetcher
from sagan.data.prepare import prepare
from sagan.files import make_folder, write_json
from sagan.progress import track
from sagan.settings import Config

PICTURE = 256  # side of the pictures that are prepared
BATCH = 64  # images that are read at once
MIB = 2**20


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of processors."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Growth:
    """The most by which resident memory grew: of the process's own, and of pages of files."""

    anonymous_mib: float
    file_mib: float


def seconds_of_preparing(
    folder: Path, count: int, resolution: int, rounds: int
) -> tuple[dict[str, list[Took]], PreparedData]:
    """What a plain decoder in one process and `prepare` took, round by round; and what was prepared."""
    paths = make_pictures(folder / "pictures", count)
    seconds: dict[str, list[Took]] = {"plain": [], "prepare": []}
    data = None
    for i in track(range(rounds), rounds, "preparing"):
        times = [(time.perf_counter(), time.process_time())]
        for path in paths:
            decoded(path, resolution)
        times.append((time.perf_counter(), time.process_time()))
        data = prepare(str(folder / "pictures"), folder / f"prepared{i}", resolution, report=lambda line: None)
        times.append((time.perf_counter(), time.process_time()))
        for form, begin, end in (("plain", *times[:2]), ("prepare", *times[1:])):
            seconds[form].append(Took(end[0] - begin[0], end[1] - begin[1]))
    assert data is not None
    return seconds, data


def decoded(path: Path, resolution: int) -> np.ndarray:
    """What one does without this project: uint8 (R, R, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS))


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Pictures with large and small features, every other one a JPEG, the others PNG."""
    make_folder(folder)
    paths = [folder / f"{i:06d}.{'jpg' if i % 2 else 'png'}" for i in range(count)]
    for i, path in enumerate(paths):
        rng = np.random.default_rng(i)
        layers = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (4, 32)]
        coarse, fine = (Image.fromarray(x).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC) for x in layers)
        Image.blend(coarse, fine, 0.3).save(path)
    return paths


def seconds_of_feeding(config: Config, data: PreparedData, steps: int) -> tuple[float, float]:
    """Seconds of a training step, and those that it waits for its batches: for the reader and for their conversion."""
    from sagan.batches import Batches
    from sagan.commands.bench import Variant
    from sagan.commands.step_variants import stepper, timed

    device = bench_device(config)
    step = stepper(config, device, Variant(channels_last=config.training.channels_last))
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
            worked.append(timed(step, 1, device))
    return sum(worked[1:]) / steps, sum(waited[1:]) / steps  # the first step warms up


def growth_while_reading(folder: Path, mib: int, resolution: int) -> Growth | None:
    """Read every image of a prepared array of `mib` MiB once, in training's order; None where /proc does not tell."""
    if not memory_of_process():
        return None
    data = PreparedData.open(make_array(folder, mib, resolution))
    indices(0, len(data), 0, 1)  # draws the order of the epoch, 8 bytes an image, which is not the array's
    before, most = _resident(), Growth(0.0, 0.0)
    for start in track(range(0, len(data), BATCH), -(-len(data) // BATCH), "reading"):
        data.gather(indices(0, len(data), start, min(BATCH, len(data) - start)))
        now = _resident()
        most = Growth(
            max(most.anonymous_mib, now.anonymous_mib - before.anonymous_mib),
            max(most.file_mib, now.file_mib - before.file_mib),
        )
    return most


def make_array(folder: Path, mib: int, resolution: int) -> Path:
    """A folder of prepared data of this size, black and without labels; it takes next to no space on the disk."""
    count = max(1, mib * MIB // (3 * resolution**2))
    make_folder(folder)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, resolution, resolution, 3))
    np.save(folder / "labels.npy", np.zeros(count, np.int64))
    manifest = Manifest(
        resolution=resolution, count=count, num_classes=0, class_names=(), class_counts=(), source="bench",
        resize="crop", skip_bad=False, skipped=0, fingerprint="", content_hash="",
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return folder


def _resident() -> Growth:
    """MiB of resident memory, as grown from none; files on a disk in memory count as files."""
    mib = memory_of_process()
    return Growth(mib["RssAnon"], mib["RssFile"] + mib["RssShmem"])

"""`sagan sample`: a folder of samples, seed<8 digits>.png or samples.npz, with samples.json that says what made them.

Every file is whole or absent, and an image depends on its name and samples.json alone. So existing files are kept, and
several processes can fill one folder without communication.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from sagan.config.options import Place, check_interpolation, check_truncation, parse_classes, select_seeds
from sagan.config.options import device as device_option
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint, load_snapshot
from sagan.sampling.sampler import class_path, default_labels, generate, latents, pick_device, processes, slerp
from sagan.utils.errors import UserError
from sagan.utils.images import enlarge, image_grid, name_rows, read_png, save_animation, save_png
from sagan.utils.io import atomic_file, make_folder, read_arrays, read_json, write_json
from sagan.utils.progress import Progress

RECORD, NPZ, GRID = "samples.json", "samples.npz", "grid.png"
MOST_IN_GRID, MOST_SAMPLES = 4096, 10_000_000
ANIMATION_SIDE, FRAMES_PER_SECOND, GRID_COLUMNS = 256, 20, 8


@click.command("sample")
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, help="Output folder; existing images are kept.")
@click.option("--seeds", metavar="0-63,80", help="Seeds of the images: numbers and inclusive ranges.")
@click.option("--num", type=int, metavar="N", help="Same as --seeds 0-(N-1).")
@click.option(
    "--classes", metavar="0,3|NAMES", help="Every seed in each of these classes.  [default: seed mod classes]"
)
@click.option("--truncation", type=float, help="Draw z from a normal distribution truncated at this value.")
@click.option("--grid", is_flag=True, help="Also write a grid of all images.")
@click.option("--npz", is_flag=True, help="Write one samples.npz instead of PNG files.")
@click.option("--interpolate", nargs=2, type=int, metavar="A B", help="Interpolate from seed A to seed B.")
@click.option("--frames", type=int, default=32, show_default=True, help="Number of frames of the interpolation.")
@click.option("--format", "animation", type=click.Choice(["gif", "mp4"]), default="gif", show_default=True,
              help="Format of the interpolation.")  # fmt: skip
@device_option
def sample_cli(
    snapshot: str, out: Path, seeds: str | None, num: int | None, classes: str | None, truncation: float | None,
    grid: bool, npz: bool, interpolate: tuple[int, int] | None, frames: int, animation: str, device: str,
) -> None:  # fmt: skip
    """Generate images from SNAPSHOT: a snapshot folder, a run (its newest one) or a Hub id."""
    check_truncation(truncation)
    if interpolate is not None:
        check_interpolation(interpolate, frames, [seeds, num, grid or None, npz or None])
    chosen = select_seeds(seeds, num) if interpolate is None else interpolate
    rank, world = processes()
    if npz and world > 1:
        raise UserError("--npz works with one process only; start it without torchrun, or leave --npz out")
    generator = load_snapshot(snapshot)
    labels = None if classes is None else parse_classes(classes, generator.class_names, generator.num_classes)
    generator.to(pick_device(device))
    if interpolate is not None:
        if rank == 0:
            write_interpolation(out, generator, interpolate, labels, truncation, frames, animation)
        return
    samples = plan_samples(chosen, labels, generator)
    if grid and len(samples) > MOST_IN_GRID:
        raise UserError(f"--grid: {len(samples)} images are too many for one grid, at most {MOST_IN_GRID}")
    claim_folder(out, generator, truncation)
    share = samples[rank::world]
    new = (write_npz if npz else write_pngs)(out, generator, share, truncation, quiet=rank > 0)
    if grid:
        write_grid(out, samples, generator.class_names, npz)
    kept = f", {len(share) - new} already there" if new < len(share) else ""
    print(f"{out}: {new} images{kept}" + (f" (process {rank + 1} of {world})" if world > 1 else ""), file=sys.stderr)


@dataclass(frozen=True)
class Sample:
    """One image: its seed and label. `named`: its class was asked for and is part of the file name."""

    seed: int
    label: int | None
    named: bool

    @property
    def name(self) -> str:
        return f"seed{self.seed:08d}" + (f"_class{self.label}.png" if self.named else ".png")


def plan_samples(seeds: Sequence[int], classes: Sequence[int] | None, generator: Generator) -> list[Sample]:
    """Every seed in each of `classes`, class by class; None: each seed in its own class, seed mod num_classes."""
    count = len(seeds) * (1 if classes is None else len(classes))
    if count > MOST_SAMPLES:
        raise UserError(f"{count} images are too many for one folder; generate at most {MOST_SAMPLES} at a time")
    if classes is not None:
        return [Sample(seed, label, True) for label in classes for seed in seeds]
    labels = default_labels(seeds, generator.num_classes)
    own = [None] * len(seeds) if labels is None else labels.tolist()
    return [Sample(seed, label, False) for seed, label in zip(seeds, own, strict=True)]


def claim_folder(out: Path, generator: Generator, truncation: float | None) -> None:
    """Write samples.json; UserError when `out` holds samples that something else made."""
    made_by = {
        "weights": fingerprint(generator),
        "truncation": truncation,
        "labels": f"seed mod {generator.num_classes}, or as named" if generator.num_classes else None,
    }
    make_folder(out)
    unclaimed = next(out.glob("seed*.png"), None) or next(out.glob(NPZ), None)  # before: another process may claim now
    if (out / RECORD).exists():
        found = read_json(out / RECORD)
        found = found if isinstance(found, dict) else {}
        for name, now in made_by.items():
            if found.get(name) != now:
                raise UserError(
                    f"{out}: holds samples made with other settings ({name} {_short(found.get(name))}, "
                    f"now {_short(now)}); choose another folder"
                )
    elif unclaimed is not None:
        raise UserError(f"{unclaimed}: exists without {RECORD}, so its origin is unknown; choose another folder")
    else:
        write_json(out / RECORD, made_by)


def _short(value: object) -> str:
    if value is None:
        return "none"
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else str(value)


def write_pngs(
    out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool
) -> int:
    """Write those of `samples` whose file does not exist; returns how many. `quiet`: shows no progress."""
    missing = [sample for sample in samples if not (out / sample.name).exists()]
    for sample, image in zip(missing, _generate(generator, missing, truncation, quiet), strict=True):
        save_png(out / sample.name, image)
    return len(missing)


def write_npz(out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool) -> int:
    """Write all into samples.npz, unless it holds them; returns how many were generated.

    images (N, H, W, 3) uint8, seeds and labels (N,) int64 (-1: no classes). UserError when it holds others.
    """
    seeds = np.array([sample.seed for sample in samples])
    labels = np.array([-1 if sample.label is None else sample.label for sample in samples])
    path = out / NPZ
    if path.exists():
        found = read_npz(path)
        if np.array_equal(found["seeds"], seeds) and np.array_equal(found["labels"], labels):
            return 0
        raise UserError(f"{path}: holds other seeds or classes; choose another folder, or remove it")
    images = np.empty((len(samples), generator.resolution, generator.resolution, 3), np.uint8)
    for i, image in enumerate(_generate(generator, samples, truncation, quiet)):
        images[i] = image
    with atomic_file(path) as temporary:
        np.savez(temporary, images=images, seeds=seeds, labels=labels)
    return len(samples)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """images, seeds and labels of a samples.npz; a damaged one is a UserError."""
    try:
        found = read_arrays(path, ("images", "seeds", "labels"), most=None)
    except ValueError as error:
        raise UserError(f"{path}: not readable as samples ({str(error).removeprefix(f'{path}: ')})") from None
    images, count = found["images"], len(found["seeds"]) if found["seeds"].ndim == 1 else -1
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (count, 3):
        raise UserError(f"{path}: not readable as samples (its images are {images.dtype} {images.shape})")
    return found


def write_grid(out: Path, samples: Sequence[Sample], class_names: Sequence[str], npz: bool) -> None:
    """grid.png: one row per class where classes were asked for, else about square.

    Writes nothing while another process still generates some of the images: the last one to finish writes the grid.
    """
    paths = [out / sample.name for sample in samples]
    if npz:
        images = read_npz(out / NPZ)["images"]
    elif all(path.exists() for path in paths):
        loaded = [read_png(path) for path in paths]
        for path, image in zip(paths, loaded, strict=True):
            if image.shape != loaded[0].shape:
                raise UserError(f"{path}: not readable as an image of these samples (its size differs); remove it")
        images = np.stack(loaded)
    else:
        return
    rows = list(dict.fromkeys(sample.label for sample in samples if sample.named))
    if len(rows) < 2:
        save_png(out / GRID, image_grid(images, math.ceil(math.sqrt(len(images)))))
        return
    names = [class_names[label] if class_names and label is not None else str(label) for label in rows]
    save_png(out / GRID, name_rows(image_grid(images, len(images) // len(rows)), names))


def write_interpolation(
    out: Path, generator: Generator, seeds: tuple[int, int], classes: Sequence[int] | None, truncation: float | None,
    frames: int, animation: str,
) -> None:  # fmt: skip
    """The path between two seeds, and between two classes where two are given, as a grid and as .gif or .mp4.

    Without `classes` the class is that of the first seed.
    """
    name, weights = f"interpolation{seeds[0]:08d}-{seeds[1]:08d}", None
    if classes is not None:
        if len(classes) > 2:
            raise UserError(f"--classes: an interpolation goes between two classes, not {len(classes)}")
        name += "_class" + "-".join(map(str, classes))
    if generator.num_classes:
        ends = [seeds[0] % generator.num_classes] if classes is None else classes
        weights = class_path(ends[0], ends[-1], generator.num_classes, frames)
    claim_folder(out, generator, truncation)
    start, end = latents(seeds, generator.z_dim, truncation)
    images = np.stack(list(_images(generator, slerp(start, end, frames), weights)))
    save_png(out / f"{name}.png", image_grid(images, GRID_COLUMNS))
    enlarged = enlarge(images, max(1, ANIMATION_SIDE // generator.resolution))
    save_animation(out / f"{name}.{animation}", enlarged, FRAMES_PER_SECOND)
    print(f"{out}: {name}.png and .{animation}, {frames} frames", file=sys.stderr)


def _generate(
    generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool
) -> Iterator[np.ndarray]:
    z = latents([sample.seed for sample in samples], generator.z_dim, truncation)
    labels = torch.tensor([sample.label for sample in samples]) if generator.num_classes else None
    return _images(generator, z, labels, quiet)


def _images(generator: Generator, z: Tensor, labels: Tensor | None, quiet: bool = False) -> Iterator[np.ndarray]:
    """The images (H, W, 3) of z (N, z_dim), with progress."""
    with Progress(len(z), "generating", quiet) as progress:
        for images in generate(generator, z, labels, next(generator.parameters()).device):
            yield from images.numpy()
            progress.advance(len(images))

"""`sagan sample`: write samples as seed<8 digits>.png or samples.npz, and their settings as samples.json.

Files are written atomically, and an image depends only on its file name and samples.json. Existing files are therefore
kept, and several processes can fill one folder without communication.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sagan.config.options import Place, check_interpolation, check_truncation, parse_classes, select_seeds
from sagan.config.options import device as device_option
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint, load_snapshot
from sagan.sampling.sampler import class_path, generate, latents, pick_device, processes, slerp
from sagan.utils.errors import UserError
from sagan.utils.images import (
    as_png,
    captioned_grid,
    enlarge,
    image_grid,
    name_rows,
    read_png,
    save_animation,
    save_png,
)
from sagan.utils.io import atomic_file, make_folder, read_arrays, read_json, write_json
from sagan.utils.progress import Progress

RECORD, NPZ, GRID = "samples.json", "samples.npz", "grid.png"
MOST_IN_GRID, MOST_SAMPLES = 4096, 10_000_000
MOST_SHOWN = 64  # images in a notebook
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


class Samples(np.ndarray):
    """Images uint8 (N, R, R, 3), as `sagan.sample` returns them. In a notebook they show themselves as a sheet.

    An array with three attributes, which arrays computed or cut from it do not have (they are None).

    Attributes:
        seeds: int64 (N,); labels: int64 (N,), -1 without classes; class_names: (K,), empty if unknown.

    Examples:
        >>> images = sagan.sample("runs/shapes", seeds=[3, 5], classes="disc")
        >>> images.seeds.tolist(), images.labels.tolist()
        ([3, 5], [0, 0])
        >>> images.sheet(columns=2).save("sheet.png")
    """

    seeds: np.ndarray | None
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    def __new__(cls, images: np.ndarray, samples: Sequence["Sample"], class_names: tuple[str, ...]) -> "Samples":
        made = images.view(cls)
        made.seeds = np.array([sample.seed for sample in samples])
        made.labels = np.array([-1 if sample.label is None else sample.label for sample in samples])
        made.class_names = class_names
        return made

    def __array_finalize__(self, other: object) -> None:
        self.seeds, self.labels, self.class_names = None, None, ()

    def sheet(self, columns: int = 8, scale: int | None = None, most: int | None = None) -> Image.Image:
        """The first `most` images as a grid, with seed and class below each.

        `scale`: of a pixel (None: images of 64 px or more).
        """
        images, captions = np.asarray(self)[:most], None
        if self.seeds is not None and self.labels is not None:
            names = ["" if k < 0 else self.class_names[k] if self.class_names else f"class {k}" for k in self.labels]
            captions = [f"{seed} {name}".rstrip() for seed, name in zip(self.seeds, names, strict=True)]
        return Image.fromarray(captioned_grid(images, captions, columns, scale))

    def _repr_png_(self) -> bytes | None:
        fits = self.dtype == np.uint8 and self.ndim == 4 and len(self)
        return as_png(self.sheet(most=MOST_SHOWN)) if fits else None


def sample(
    generator: Generator, samples: Sequence["Sample"], truncation: float | None = None, quiet: bool = False
) -> Samples:
    """The images of `samples`. The generator is in eval mode."""
    images = np.empty((len(samples), generator.resolution, generator.resolution, 3), np.uint8)
    for i, image in enumerate(_generate(generator, samples, truncation, quiet)):
        images[i] = image
    return Samples(images, samples, generator.class_names)


@dataclass(frozen=True)
class Sample:
    """Seed and label of one image. `named`: the class was requested and is part of the file name."""

    seed: int
    label: int | None
    named: bool

    @property
    def name(self) -> str:
        return f"seed{self.seed:08d}" + (f"_class{self.label}.png" if self.named else ".png")


def plan_samples(seeds: Sequence[int], classes: Sequence[int] | None, generator: Generator) -> list[Sample]:
    """Every seed in each of `classes`, class by class. None: each seed in class seed mod num_classes."""
    count = len(seeds) * (1 if classes is None else len(classes))
    if count > MOST_SAMPLES:
        raise UserError(f"{count} images are too many for one folder; generate at most {MOST_SAMPLES} at a time")
    if classes is not None:
        return [Sample(seed, label, True) for label in classes for seed in seeds]
    return [Sample(seed, seed % generator.num_classes if generator.num_classes else None, False) for seed in seeds]


def claim_folder(out: Path, generator: Generator, truncation: float | None) -> None:
    """Write samples.json. UserError if `out` holds samples of other weights or settings."""
    made_by = {
        "weights": fingerprint(generator),
        "truncation": truncation,
        "labels": f"seed mod {generator.num_classes}, or as named" if generator.num_classes else None,
    }
    make_folder(out)
    unclaimed = next(out.glob("seed*.png"), None) or next(out.glob(NPZ), None)  # before: another process may claim now
    if (out / RECORD).exists():
        found = read_json(out / RECORD)
        for name, now in made_by.items():
            was = found.get(name) if isinstance(found, dict) else None
            if was != now:
                raise UserError(
                    f"{out}: holds samples made with other settings ({name}: {was!s:.24}, now {now!s:.24}); "
                    "choose another folder"
                )
    elif unclaimed is not None:
        raise UserError(f"{unclaimed}: exists without {RECORD}, so its origin is unknown; choose another folder")
    else:
        write_json(out / RECORD, made_by)


def write_pngs(
    out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool
) -> int:
    """Write the `samples` whose file does not exist. Returns how many."""
    missing = [sample for sample in samples if not (out / sample.name).exists()]
    for sample, image in zip(missing, _generate(generator, missing, truncation, quiet), strict=True):
        save_png(out / sample.name, image, gray=generator.image_channels == 1)
    return len(missing)


def write_npz(out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool) -> int:
    """Write samples.npz, unless it exists: images (N, H, W, 3) uint8, seeds and labels (N,) int64 (-1: no classes).

    Returns how many images were generated. UserError if an existing file holds other seeds or labels.
    """
    seeds = np.array([sample.seed for sample in samples])
    labels = np.array([-1 if sample.label is None else sample.label for sample in samples])
    path = out / NPZ
    if path.exists():
        found = read_npz(path)
        if np.array_equal(found["seeds"], seeds) and np.array_equal(found["labels"], labels):
            return 0
        raise UserError(f"{path}: holds other seeds or classes; choose another folder, or remove it")
    images = np.asarray(sample(generator, samples, truncation, quiet))
    with atomic_file(path) as temporary:
        np.savez(temporary, images=images, seeds=seeds, labels=labels)
    return len(samples)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read images, seeds and labels of a samples.npz. UserError if it is damaged."""
    try:
        found = read_arrays(path, ("images", "seeds", "labels"), most=None)
    except ValueError as error:
        raise UserError(f"{path}: not readable as samples ({str(error).removeprefix(f'{path}: ')})") from None
    images = found["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or (images.shape[:1], images.shape[3]) != (found["seeds"].shape, 3):
        raise UserError(f"{path}: not readable as samples (its images are {images.dtype} {images.shape})")
    return found


def write_grid(out: Path, samples: Sequence[Sample], class_names: Sequence[str], npz: bool) -> None:
    """Write grid.png: one row per requested class, otherwise about square.

    Does nothing while another process still generates some of the images: the last one to finish writes the grid.
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
    labels = list(dict.fromkeys(sample.label for sample in samples if sample.named))
    grid = image_grid(images, len(images) // len(labels) if len(labels) > 1 else math.ceil(math.sqrt(len(images))))
    if len(labels) > 1:
        grid = name_rows(grid, [class_names[i] if class_names and i is not None else str(i) for i in labels])
    save_png(out / GRID, grid)


def write_interpolation(
    out: Path, generator: Generator, seeds: tuple[int, int], classes: Sequence[int] | None, truncation: float | None,
    frames: int, animation: str,
) -> None:  # fmt: skip
    """Interpolate between two seeds, and between two classes if two are given; write a grid and a .gif or .mp4.

    Without `classes`, the class is that of the first seed.
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
    """Images (H, W, 3) of z (N, z_dim), with a progress bar."""
    with Progress(len(z), "generating", quiet) as progress:
        for images in generate(generator, z, labels, next(generator.parameters()).device):
            yield from images.numpy()
            progress.advance(len(images))

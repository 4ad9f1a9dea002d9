"""A folder of samples: seed<8 digits>.png, or samples.npz, with samples.json that says what made them.

Every file is whole or absent, and an image depends on its name and samples.json alone. So what is there is kept, and
several processes can fill one folder without talking to each other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sagan.archive import read_arrays
from sagan.errors import UserError
from sagan.files import atomic_file, make_folder, read_json, write_json
from sagan.images import enlarge, name_rows, read_png, save_animation, save_png, sheet
from sagan.interpolation import class_path, slerp
from sagan.networks import Generator
from sagan.progress import Progress
from sagan.sampling import default_labels, generate, latents
from sagan.snapshot import fingerprint

RECORD, NPZ, GRID = "samples.json", "samples.npz", "grid.png"
MOST_IN_GRID, MOST_SAMPLES = 4096, 10_000_000
ANIMATION_SIDE, FRAMES_PER_SECOND, SHEET_COLUMNS = 256, 20, 8


@dataclass(frozen=True)
class Sample:
    """One image to draw. `asked`: its class was asked for, and stands in its name."""

    seed: int
    label: int | None
    asked: bool

    @property
    def name(self) -> str:
        return f"seed{self.seed:08d}" + (f"_class{self.label}.png" if self.asked else ".png")


def plan_samples(
    seeds: Sequence[int], classes: Sequence[int] | None, generator: Generator, grid: bool = False
) -> list[Sample]:
    """Every seed in each of `classes`, class by class; None: each seed in its own class, seed mod num_classes."""
    count = len(seeds) * (1 if classes is None else len(classes))
    if count > MOST_SAMPLES:
        raise UserError(f"{count} images are more than one folder should hold; draw at most {MOST_SAMPLES} at a time")
    if classes is not None:
        samples = [Sample(seed, label, True) for label in classes for seed in seeds]
    else:
        labels = default_labels(seeds, generator.num_classes)
        own = [None] * len(seeds) if labels is None else labels.tolist()
        samples = [Sample(seed, label, False) for seed, label in zip(seeds, own, strict=True)]
    if grid and len(samples) > MOST_IN_GRID:
        raise UserError(f"--grid: {len(samples)} images are too many for one sheet, at most {MOST_IN_GRID}")
    return samples


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
                    f"{out}: holds samples of something else ({name} {_short(found.get(name))}, now {_short(now)}); "
                    "choose another folder"
                )
    elif unclaimed is not None:
        raise UserError(f"{unclaimed}: is there without {RECORD}, so what made it is unknown; choose another folder")
    else:
        write_json(out / RECORD, made_by)


def write_samples(
    out: Path,
    generator: Generator,
    samples: Sequence[Sample],
    truncation: float | None,
    grid: bool = False,
    npz: bool = False,
    rank: int = 0,
    world: int = 1,
) -> str:
    """Process `rank` of `world` draws its share of `samples` into `out`; returns what it did, as one line."""
    claim_folder(out, generator, truncation)
    share = samples[rank::world]
    drawn = (write_npz if npz else write_pngs)(out, generator, share, truncation, quiet=rank > 0)
    if grid:
        write_grid(out, samples, generator.class_names, npz)
    kept = f", {len(share) - drawn} were there" if drawn < len(share) else ""
    return f"{out}: {drawn} images{kept}" + (f" (process {rank + 1} of {world})" if world > 1 else "")


def write_pngs(
    out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool = False
) -> int:
    """Draw those of `samples` whose file is not there; returns how many. `quiet`: shows no progress."""
    missing = [sample for sample in samples if not (out / sample.name).exists()]
    for sample, image in zip(missing, _draw(generator, missing, truncation, quiet), strict=True):
        save_png(out / sample.name, image)
    return len(missing)


def write_npz(
    out: Path, generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool = False
) -> int:
    """Draw all into samples.npz, unless it holds them; returns how many were drawn.

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
    for i, image in enumerate(_draw(generator, samples, truncation, quiet)):
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


def _read_alike(paths: Sequence[Path]) -> np.ndarray:
    """uint8 (N, H, W, 3); UserError for images of different sizes."""
    images = [read_png(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(f"{path}: not readable as an image of these samples (its size is another); remove it")
    return np.stack(images)


def write_grid(out: Path, samples: Sequence[Sample], class_names: Sequence[str], npz: bool = False) -> None:
    """grid.png: one row a class where classes were asked for, else about square. Waits for nobody.

    When another process still draws some of the images nothing is written: the last one to end writes the sheet.
    """
    if npz:
        images = read_npz(out / NPZ)["images"]
    elif all((out / sample.name).exists() for sample in samples):
        images = _read_alike([out / sample.name for sample in samples])
    else:
        return
    rows = list(dict.fromkeys(sample.label for sample in samples if sample.asked))
    if len(rows) < 2:
        save_png(out / GRID, sheet(images, math.ceil(math.sqrt(len(images)))))
        return
    names = [class_names[label] if class_names and label is not None else str(label) for label in rows]
    save_png(out / GRID, name_rows(sheet(images, len(images) // len(rows)), names))


def write_interpolation(
    out: Path,
    generator: Generator,
    seeds: tuple[int, int],
    classes: Sequence[int] | None,
    truncation: float | None,
    frames: int,
    animation: str,
) -> str:
    """The way between two seeds, and between two classes where two are given, as a sheet and as .gif or .mp4.

    Without `classes` the class is that of the first seed. Returns what was written, as one line.
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
    with Progress(frames, "drawing") as progress:
        images = np.stack(list(_images(generator, slerp(start, end, frames), weights, progress)))
    save_png(out / f"{name}.png", sheet(images, SHEET_COLUMNS))
    enlarged = enlarge(images, max(1, ANIMATION_SIDE // generator.resolution))
    save_animation(out / f"{name}.{animation}", enlarged, FRAMES_PER_SECOND)
    return f"{out}: {name}.png and .{animation}, {frames} frames"


def _draw(
    generator: Generator, samples: Sequence[Sample], truncation: float | None, quiet: bool
) -> Iterator[np.ndarray]:
    if not samples:
        return
    z = latents([sample.seed for sample in samples], generator.z_dim, truncation)
    labels = torch.tensor([sample.label for sample in samples]) if generator.num_classes else None
    with Progress(len(samples), "drawing", quiet) as progress:
        yield from _images(generator, z, labels, progress)


def _images(
    generator: Generator, z: torch.Tensor, labels: torch.Tensor | None, progress: Progress
) -> Iterator[np.ndarray]:
    for images in generate(generator, z, labels, next(generator.parameters()).device):
        yield from images.numpy()
        progress.advance(len(images))


def _short(value: object) -> str:
    if value is None:
        return "none"
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else str(value)

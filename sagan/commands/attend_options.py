"""The options of `sagan attend`. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from sagan.commands.measured import Source
from sagan.errors import UserError

MOST_POINTS, MOST_IMAGES = 32, 128  # beyond, no figure is readable
DEFAULT_POINTS = "5"


@dataclass(frozen=True)
class Options:
    """As the command line gives them."""

    source: str
    out: Path
    seeds: str = "0-7"
    classes: str | None = None
    points: str | None = None
    at: str | None = None
    network: str = "generator"
    images: Path | None = None
    layers: str | None = None
    html: bool = False
    animate: str | None = None
    mp4: bool = False
    smooth: bool = False
    tile: int = 128
    lpips_weights: Path | None = None
    as_json: bool = False

    @property
    def of_generator(self) -> bool:
        return self.network != "discriminator"

    @property
    def of_discriminator(self) -> bool:
        return self.network != "generator"


def check_options(options: Options, source: Source) -> None:
    """UserError for options that are wrong in themselves, or do not fit the source or each other."""
    if source.kind in ("prepared", "files"):
        raise UserError(f"{options.source}: holds images; give a run, a checkpoint, a snapshot or a Hub id")
    if options.points is not None and options.at is not None:
        raise UserError("--points and --at exclude each other; --at names the points itself")
    points = options.points or DEFAULT_POINTS
    number = int(points) if points.isascii() and points.isdigit() and len(points) < 9 else 0
    if points not in ("random", "grid") and not 1 <= number <= MOST_POINTS:
        raise UserError(f"--points {points}: expected a number from 1 to {MOST_POINTS}, random or grid")
    if options.at is not None:
        parse_pixels(options.at)
    if options.of_discriminator and source.kind not in ("run", "checkpoint"):
        raise UserError(f"{options.source}: a snapshot holds the generator alone; give its run or a checkpoint")
    if options.images is not None and not options.of_discriminator:
        raise UserError("--images: are for the discriminator; add --network discriminator or both")
    if options.html and not options.of_generator:
        raise UserError("--html: the page shows the generator; give --network generator or both")
    if options.mp4 and options.animate is None:
        raise UserError("--mp4: is for an animation; add --animate snapshots or path")
    if options.animate == "snapshots" and source.kind != "run":
        raise UserError("--animate snapshots: needs a run, whose snapshots show how attention forms")


def parse_pixels(text: str) -> list[tuple[int, int]]:
    """ "3,4;10,20" -> [(3, 4), (10, 20)], (row, column). UserError for anything else."""
    pixels = []
    for part in text.split(";"):
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*,\s*([0-9]{1,6})\s*", part)
        if match is None:
            raise UserError(f"--at {part.strip()!r}: expected ROW,COLUMN pairs, such as 8,8;20,12")
        pixels.append((int(match[1]), int(match[2])))
    if len(pixels) > MOST_POINTS:
        raise UserError(f"--at: {len(pixels)} points, a figure shows at most {MOST_POINTS}")
    return pixels

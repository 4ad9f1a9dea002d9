"""Kinds of values and options that several commands of `sagan` take."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from sagan.utils.errors import UserError, suggestion


class Place(click.ParamType):
    """A path that is named: an empty text, as of a shell variable that is not set, is not the working folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return Path(value)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="What computes.")  # fmt: skip
inception_weights = click.option("--inception-weights", type=Place(), metavar="FILE",
                                 help="Default: torch hub's cache, or a download.")  # fmt: skip


HIGHEST_SEED = 99_999_999  # file names have room for 8 digits
MOST_LISTED = 10_000_000  # numbers that are held as a list


def select_seeds(seeds: str | None, num: int | None) -> Sequence[int]:
    """Seeds of `--seeds` or `--num` (0 to num - 1), exactly one of them given."""
    if (seeds is None) == (num is None):
        raise UserError("give --seeds (such as 0-63) or --num, one of them")
    return parse_seeds(seeds) if seeds is not None else parse_seeds(f"0-{_at_least_one(num) - 1}")


def parse_seeds(text: str) -> Sequence[int]:
    """ "0-63" (inclusive), "7" or "1,3,8-15" -> seeds in that order. A seed given twice is a UserError."""
    ranges = [_parse_range(part.strip(), "--seeds") for part in text.split(",")]
    for one in ranges:
        if one[-1] > HIGHEST_SEED:
            raise UserError(f"--seeds {one[-1]}: the highest seed is {HIGHEST_SEED}")
    return ranges[0] if len(ranges) == 1 else _without_repeats(ranges, "--seeds")


def parse_classes(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    """ "0,3", "0-9" or names, mixed as you like, -> class indices. A number is always an index, never a name.

    UserError for a class that is unknown (with the nearest name), out of range or given twice, and for a
    snapshot without classes.
    """
    if num_classes == 0:
        raise UserError("--classes: this snapshot has no classes")
    return _without_repeats([_parse_class(p.strip(), class_names, num_classes) for p in text.split(",")], "--classes")


def check_truncation(truncation: float | None) -> None:
    """None (no truncation) or a positive number."""
    if truncation is not None and not (math.isfinite(truncation) and truncation > 0):
        raise UserError(f"--truncation {truncation}: expected a positive number, such as 0.7")


def check_interpolation(ends: tuple[int, int], frames: int, others: Sequence[object]) -> None:
    """Seeds, number of frames, and that none of `others` (--seeds, --num, --grid, --npz) is given with it."""
    if any(other is not None for other in others):
        raise UserError("--interpolate goes with none of --seeds, --num, --grid and --npz")
    if not all(0 <= seed <= HIGHEST_SEED for seed in ends):
        raise UserError(f"--interpolate {ends[0]} {ends[1]}: seeds are 0 to {HIGHEST_SEED}")
    if frames < 2:
        raise UserError(f"--frames {frames}: expected at least 2")


def _parse_class(text: str, class_names: Sequence[str], num_classes: int) -> range:
    if text in class_names and not text.isdigit():
        index = class_names.index(text)
        return range(index, index + 1)
    if re.match("[0-9]", text) is None:
        hint = suggestion(text, class_names) if class_names else f"0 to {num_classes - 1}"
        raise UserError(f"--classes {text}: no such class; {hint}")
    found = _parse_range(text, "--classes")
    if found[-1] >= num_classes:
        raise UserError(f"--classes {found[-1]}: this snapshot has the classes 0 to {num_classes - 1}")
    return found


def _parse_range(text: str, option: str) -> range:
    match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if match is None:
        raise UserError(f"{option} {text!r}: expected numbers and ranges, such as 0-63 or 1,3,8-15")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UserError(f"{option} {text}: a range goes up, such as {last}-{first}")
    return range(first, last + 1)


def _without_repeats(ranges: list[range], option: str) -> list[int]:
    in_order = sorted(ranges, key=lambda one: one.start)
    for one, following in pairwise(in_order):
        if following.start < one.stop:
            raise UserError(f"{option}: {following.start} is given twice")
    if sum(map(len, ranges)) > MOST_LISTED:
        raise UserError(f"{option}: over {MOST_LISTED} numbers are too many for a list; give one range, or fewer")
    return [number for one in ranges for number in one]


def _at_least_one(num: int | None) -> int:
    if num is None or num < 1:
        raise UserError(f"--num {num}: expected at least 1")
    return num

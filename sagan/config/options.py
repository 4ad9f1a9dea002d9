"""Options shared by several commands, and parsers of their values."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import expand_home


class Place(click.ParamType):
    """A path, with ~ and ~NAME as home folders. An empty one, often an unset shell variable, is an error."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return expand_home(value)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="Device to compute on.")  # fmt: skip
inception_weights = click.option("--inception-weights", type=Place(), metavar="FILE",
                                 help="Default: torch hub's cache, or a download.")  # fmt: skip
HIGHEST_SEED = 99_999_999  # file names hold 8 digits
MOST_LISTED = 10_000_000  # numbers in a list


def select_seeds(seeds: str | None, num: int | None) -> Sequence[int]:
    """Seeds of `--seeds` or `--num` (0 to num - 1); exactly one of them must be given."""
    if (seeds is None) == (num is None):
        raise UserError("give --seeds (such as 0-63) or --num, one of them")
    if num is not None and num < 1:
        raise UserError(f"--num {num}: expected at least 1")
    return parse_seeds(f"0-{num - 1}" if num is not None else str(seeds))


def as_seeds(seeds: int | str | Iterable[int]) -> Sequence[int]:
    """Seeds given in Python: how many (0 to N - 1), a text as of `--seeds`, or the numbers. UserError as there."""
    if not isinstance(seeds, Iterable):
        return select_seeds(None, seeds)
    return parse_seeds(seeds if isinstance(seeds, str) else ",".join(map(str, seeds)))


def as_classes(
    classes: int | str | Iterable[int | str], class_names: Sequence[str], num_classes: int
) -> list[int]:  # fmt: skip
    """Classes given in Python: a text as of `--classes`, or numbers and names. UserError as there."""
    if isinstance(classes, Iterable) and not isinstance(classes, str):
        numbers = (class_names.index(name) if name in class_names else name for name in classes)
        classes = ",".join(map(str, numbers))
    return parse_classes(str(classes), class_names, num_classes)


def parse_seeds(text: str) -> Sequence[int]:
    """Parse "0-63" (inclusive), "7" or "1,3,8-15", keeping the order. Raises UserError for a repeated seed."""
    ranges = [_parse_range(part.strip(), "--seeds", HIGHEST_SEED) for part in text.split(",")]
    return ranges[0] if len(ranges) == 1 else _join(ranges, "--seeds")


def parse_classes(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    """Parse "0,3", "0-9", names, or a mix of these into class indices. A number is always an index, never a name.

    Raises UserError for a class that is unknown (with the nearest name), out of range or repeated, and for a snapshot
    without classes.
    """
    if num_classes == 0:
        raise UserError("--classes: this snapshot has no classes")
    ranges = []
    for part in map(str.strip, text.split(",")):
        if part in class_names and not part.isdigit():
            part = str(class_names.index(part))
        elif re.match("[0-9]", part) is None:
            hint = suggestion(part, class_names) if class_names else f"0 to {num_classes - 1}"
            raise UserError(f"--classes {part}: no such class; {hint}")
        ranges.append(_parse_range(part, "--classes", num_classes - 1))
    return _join(ranges, "--classes")


def check_truncation(truncation: float | None) -> None:
    """Raise UserError unless `truncation` is None (no truncation) or a positive number."""
    if truncation is not None and not (math.isfinite(truncation) and truncation > 0):
        raise UserError(f"--truncation {truncation}: expected a positive number, such as 0.7")


def check_interpolation(ends: tuple[int, int], frames: int, others: Sequence[object]) -> None:
    """Raise UserError for invalid seeds or frames, and if any of `others` (--seeds, --num, --grid, --npz) is given."""
    if any(other is not None for other in others):
        raise UserError("--interpolate goes with none of --seeds, --num, --grid and --npz")
    if not all(0 <= seed <= HIGHEST_SEED for seed in ends):
        raise UserError(f"--interpolate {ends[0]} {ends[1]}: seeds are 0 to {HIGHEST_SEED}")
    if frames < 2:
        raise UserError(f"--frames {frames}: expected at least 2")


def _parse_range(text: str, option: str, highest: int) -> range:
    match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if match is None:
        raise UserError(f"{option} {text!r}: expected numbers and ranges, such as 0-63 or 1,3,8-15")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UserError(f"{option} {text}: a range goes up, such as {last}-{first}")
    if last > highest:
        raise UserError(f"{option} {last}: the highest number is {highest}")
    return range(first, last + 1)


def _join(ranges: list[range], option: str) -> list[int]:
    for one, following in pairwise(sorted(ranges, key=lambda one: one.start)):
        if following.start < one.stop:
            raise UserError(f"{option}: {following.start} is given twice")
    if sum(map(len, ranges)) > MOST_LISTED:
        raise UserError(f"{option}: over {MOST_LISTED} numbers are too many for a list; give one range, or fewer")
    return [number for one in ranges for number in one]

"""The newest sample sheets of several runs, cut to the same rows and columns so that they fit beside each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagan.comparison.runs import RunRecord
from sagan.errors import UserError
from sagan.images import read_png, sheet

BORDER = 2  # pixels between the images of a sheet, as `sagan.images.sheet` draws it
ENLARGED = 64  # pixels: to about this side a run enlarges the images of its sheets
SMALLEST, LARGEST = 64, 128  # side of an image in the picture, pixels; larger where the images themselves are
FEWEST_COLUMNS, MOST_ROWS, HIGHEST = 4, 10, 1320  # of a panel: images, images, pixels


@dataclass(frozen=True, eq=False)
class NewestSheet:
    """The images of a sheet, uint8 (rows, columns, R, R, 3), and the step that drew it."""

    images: np.ndarray
    step: int


def newest_sheet(run: RunRecord) -> NewestSheet | None:
    """The newest samples/<step>.png, taken apart; None before the first. UserError for a file that is no such sheet."""
    files = sorted(p for p in (run.folder / "samples").glob("*.png") if re.fullmatch(r"\d{8}", p.stem))
    return NewestSheet(_apart(files[-1], run.config.data.resolution), int(files[-1].stem)) if files else None


def panels(sheets: Sequence[NewestSheet | None], width: int) -> list[np.ndarray | None]:
    """One picture a run, uint8 (H, W ≤ `width`, 3), all of one size; None where there is no sheet."""
    images = [found.images for found in sheets if found is not None]
    if not images:
        return [None] * len(sheets)
    rows, columns = (min(array.shape[axis] for array in images) for axis in (0, 1))
    largest = max(array.shape[2] for array in images)
    fitting = (width - BORDER) // columns - BORDER
    side = largest * max(-(-SMALLEST // largest), min(fitting, LARGEST) // largest)
    columns = max(1, min(columns, (width - BORDER) // (side + BORDER)))
    rows = max(1, min(rows, MOST_ROWS, (HIGHEST - BORDER) // (side + BORDER)))
    return [None if found is None else _panel(found.images[:rows, :columns], side) for found in sheets]


def panels_in_a_row(sheets: Sequence[NewestSheet | None], width: int, most: int) -> int:
    """How many panels stand beside each other in `width` pixels, so that each has `FEWEST_COLUMNS` images or all."""
    images = [found.images for found in sheets if found is not None]
    needed = min([FEWEST_COLUMNS, *(array.shape[1] for array in images)])
    side = max([SMALLEST, *(array.shape[2] for array in images)])
    return max(1, min(most, len(sheets), width // (needed * (side + BORDER) + BORDER)))


def _panel(images: np.ndarray, side: int) -> np.ndarray:
    rows, columns, resolution = images.shape[:3]
    return sheet(images.reshape(rows * columns, *images.shape[2:]), columns, scale=side // resolution, border=BORDER)


def _apart(path: Path, resolution: int) -> np.ndarray:
    """A sheet (H, W, 3) into its images (rows, columns, R, R, 3), no longer enlarged."""
    whole, scale = read_png(path), max(1, ENLARGED // resolution)
    pitch = resolution * scale + BORDER
    (rows, odd_rows), (columns, odd_columns) = (divmod(length - BORDER, pitch) for length in whole.shape[:2])
    if odd_rows or odd_columns or not rows or not columns:
        raise UserError(
            f"{path}: not a sheet of {resolution} px samples, it has {whole.shape[1]}x{whole.shape[0]} pixels; "
            "remove it, or move it out of the run"
        )
    cells = whole[BORDER:, BORDER:].reshape(rows, pitch, columns, pitch, 3).swapaxes(1, 2)  # (rows, columns, P, P, 3)
    return cells[:, :, : resolution * scale : scale, : resolution * scale : scale]

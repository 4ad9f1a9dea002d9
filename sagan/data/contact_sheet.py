"""One picture of a data set: a row a class, images spread evenly over it."""

import numpy as np
from PIL import Image, ImageDraw

ROWS, COLUMNS = 16, 10
SMALLEST_CELL = 64  # pixels; smaller images are enlarged by a whole factor
MARGIN = 110  # pixels for the names


def contact_sheet(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Image.Image:
    """From uint8 (N, R, R, 3) and labels (N,): the first 16 classes, 10 images of each; without classes 10 × 10."""
    rows = _rows(labels, class_names)
    scale = max(1, SMALLEST_CELL // images.shape[1])
    cell = images.shape[1] * scale
    margin = MARGIN if class_names else 0
    sheet = Image.new("RGB", (margin + COLUMNS * cell, len(rows) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, members) in enumerate(rows):
        pen.text((6, y * cell + cell // 2), name[:16].encode("ascii", "replace").decode(), fill="black", anchor="lm")
        for x, index in enumerate(members.tolist()):
            image = Image.fromarray(images[index]).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + x * cell, y * cell))
    return sheet


def _rows(labels: np.ndarray, class_names: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    """(name, indices) of each row."""
    if class_names:
        return [(name, _spread(np.flatnonzero(labels == c), COLUMNS)) for c, name in enumerate(class_names[:ROWS])]
    chosen = _spread(np.arange(len(labels)), COLUMNS * COLUMNS)
    return [("", chosen[i : i + COLUMNS]) for i in range(0, len(chosen), COLUMNS)]


def _spread(members: np.ndarray, count: int) -> np.ndarray:
    return members[np.unique(np.linspace(0, len(members) - 1, count).astype(int))]

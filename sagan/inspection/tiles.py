"""One tile of the attention figure: an image under a map, with dots and boxes; or bars, where a map has no place.

Opacity of maps that share out a weight of 1 is weight / max(largest weight of the map, FULL / M), M keys: the peak of a
map is full colour only where it is at least FULL times what uniform attention gives. So uniform attention is a flat
quarter, and noise about it stays faint. Cells are shown as they are; `smooth` blends them.
"""

import numpy as np
from PIL import Image

COLOURS = (
    (255, 77, 77), (72, 187, 255), (255, 214, 10), (90, 230, 120),
    (224, 122, 255), (255, 150, 50), (0, 222, 205), (255, 150, 205),
)  # fmt: skip
SIGNS = (COLOURS[1], COLOURS[5])  # of negative and positive weights
PAPER, INK, FAINT_PAPER = (255, 255, 255), (0, 0, 0), (243, 244, 246)
FULL = 4  # multiples of uniform attention from which a peak is full colour


def colour_of(j: int) -> tuple[int, int, int]:
    """Of point, head or box j."""
    return COLOURS[j % len(COLOURS)]


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 (R, R, 3) as float32 (side, side, 3); R divides side."""
    scale = side // image.shape[0]
    return image.repeat(scale, 0).repeat(scale, 1).astype(np.float32)


def opacity(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """How opaque each pixel of a tile is under a map (H', W') of weights that share out 1, of a query map of `size`."""
    return spread(weights / max(weights.max(), FULL / weights.size), size, side, smooth)


def spread(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """A map (H', W') in [0, 1] of a query map of `size` -> (side, side).

    A pooled key covers the query cells it was pooled from; a last odd row or column that no key sees stays empty.
    """
    if smooth:
        blended = Image.fromarray(weights.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(blended), 0, 1)
    cells = [np.arange(side) * n // side for n in size]
    rows, columns = (np.minimum(c // (n // m), m) for c, n, m in zip(cells, size, weights.shape, strict=True))
    return np.pad(weights, ((0, 1), (0, 1)))[rows[:, None], columns]


def overlay(image: np.ndarray, alpha: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image (side, side, 3) dark and grey, under a colour of opacity `alpha` (side, side)."""
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # (side, side, 1), ITU-R BT.601
    dark, lit = 16 + 0.35 * grey, np.array(colour) * (0.7 + 0.3 * grey / 255)
    return dark + alpha[..., None] * (lit - dark)


def signed_overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same under weights (side, side) in [-1, 1], in a colour for each sign."""
    negative = overlay(image, np.clip(-weights, 0, 1), SIGNS[0])
    positive = overlay(image, np.clip(weights, 0, 1), SIGNS[1])
    return np.where(weights[..., None] < 0, negative, positive)


def with_dot(tile: np.ndarray, point: list[float], colour: tuple[int, int, int], radius: float) -> np.ndarray:
    """The tile with a dot in a white and a black ring at fractions (row, column)."""
    height, width = tile.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y + 0.5 - point[0] * height, x + 0.5 - point[1] * width)
    for reach, ring in ((radius + 2.2, INK), (radius + 1.4, PAPER), (radius, colour)):
        cover = np.clip(reach - distance + 0.5, 0, 1)[..., None]
        tile = tile + cover * (np.array(ring) - tile)
    return tile


def with_box(tile: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The tile with the outline of a box: top, left, bottom, right as fractions."""
    side = len(tile)
    thick = max(2, side // 64)
    top, left, bottom, right = (np.clip(np.rint(box * side), 0, side)).astype(int)
    tile = tile.copy()
    tile[top:bottom, left:right][:thick] = tile[top:bottom, left:right][-thick:] = colour
    tile[top:bottom, left:right][:, :thick] = tile[top:bottom, left:right][:, -thick:] = colour
    return tile


def crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """What lies in a box of an image (R, R, 3), enlarged to (side, side, 3), pixels as they are."""
    rows, columns = (
        np.clip(np.floor((a + (np.arange(side) + 0.5) / side * (b - a)) * len(image)), 0, len(image) - 1).astype(int)
        for a, b in ((box[0], box[2]), (box[1], box[3]))
    )
    return image[rows[:, None], columns].astype(np.float32)


def bars(values: np.ndarray, side: int, colour: tuple[int, int, int], most: float) -> np.ndarray:
    """Values (W',) from 0 to `most` as bars side by side, up to one a pixel (then the mean of those it stands for)."""
    tile = np.full((side, side, 3), FAINT_PAPER, np.float32)
    parts = np.array_split(values, side) if len(values) > side else [values[i : i + 1] for i in range(len(values))]
    edges = np.linspace(0, side, len(parts) + 1).round().astype(int)
    for part, left, right in zip(parts, edges[:-1], edges[1:], strict=True):
        height = round(side * float(np.clip(part.mean() / most, 0, 1)))
        tile[side - height :, left : max(right - (right - left > 3), left + 1)] = colour
    return tile


def matrix(values: np.ndarray, side: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A matrix from 0 to its largest value as cells (side, side, 3), one a pixel or more."""
    shown = values / max(values.max(), 1e-12)
    rows, columns = (np.arange(side) * n // side for n in shown.shape)
    alpha = shown[rows[:, None], columns][..., None]
    return FAINT_PAPER + alpha.astype(np.float32) * (np.array(colour, np.float32) - FAINT_PAPER)


def with_lattice(image: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (side, side, 3) with a dot where each cell reads: `places` (2, H, W), row and column in cells."""
    side = len(image)
    tile = overlay(image, np.zeros((side, side)), PAPER)
    at = [np.rint((p + 0.5) * side / n - 0.5).astype(int).ravel() for p, n in zip(places, size, strict=True)]
    inside = (at[0] >= 0) & (at[0] < side - 1) & (at[1] >= 0) & (at[1] < side - 1)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tile[at[0][inside] + down, at[1][inside] + right] = COLOURS[2]
    return tile

"""The embedded data set `shapes`: two distant objects with the same shape (the class) and the same hue.

Image `index` of a `seed` is a scene in relative units, so it is the same at every resolution. The objects are in the
left and the right half, each at its own place and size, MARGIN away from the border and the middle. The class is
index mod 4, the hue uniform on the circle, the background a gradient between two near-grays (docs/shapes.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sagan.utils.errors import UserError
from sagan.utils.random import numpy_generator

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

DISC_RADIUS = 0.9
SQUARE_HALF_SIDE = 0.8
TRIANGLE_INRADIUS = 0.575  # equilateral, point up: the circumradius is 1.15, the half width 0.996
CROSS_HALF_WIDTH = 0.36
HALF_SQRT_3 = 0.8660254


def disc(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.sqrt(dx * dx + dy * dy) - DISC_RADIUS * radius


def square(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_HALF_SIDE * radius


def triangle(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(dy, HALF_SQRT_3 * np.abs(dx) - 0.5 * dy) - TRIANGLE_INRADIUS * radius


def cross(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    longer, shorter = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
    return np.maximum(longer - radius, shorter - CROSS_HALF_WIDTH * radius)


SHAPES: dict[str, Distance] = {"disc": disc, "square": square, "triangle": triangle, "cross": cross}


def pixel_centers(resolution: int) -> np.ndarray:
    """(R,) float32 coordinates of the pixel centers on one axis, in (0, 1)."""
    return (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution)


def coverage(distance: np.ndarray, resolution: int, softness: float = 1.0) -> np.ndarray:
    """Coverage of pixels by a shape, in [0, 1]: a linear ramp `softness` pixels wide across the outline."""
    return np.clip(np.float32(0.5) - distance * np.float32(resolution / softness), 0, 1)


def hue_to_rgb(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB: hues (N,) in degrees to colors (N, 3) float32 in [0, 1]."""
    place = (np.asarray(hue, np.float32)[:, None] / 60 + np.array([5, 3, 1], np.float32)) % 6
    share = np.clip(np.minimum(place, 4 - place), 0, 1)
    return np.float32(value) * (1 - np.float32(saturation) * share)


def rgb_to_hue(rgb: np.ndarray) -> np.ndarray:
    """HSV hue (N,) of colors (N, 3), in [0, 360) degrees; 0 for gray."""
    red, green, blue = rgb.T
    top, chroma = rgb.max(1), np.ptp(rgb, axis=1)
    chroma = np.where(chroma > 0, chroma, 1)
    from_green = np.where(top == green, (blue - red) / chroma + 2, (red - green) / chroma + 4)
    sextant = np.where(top == red, (green - blue) / chroma, from_green)
    return (60 * sextant) % 360


CLASSES: tuple[str, ...] = tuple(SHAPES)
RADII = (0.14, 0.20)  # of an object; its half width
MARGIN = 0.045
TALL = 1.15  # the farthest that a shape reaches up from its center, in radii
SATURATION, VALUE = 0.85, 0.95  # of the objects
LIGHTNESS = (0.15, 0.95)  # of the background
SLOPE = 0.25  # largest change of lightness along the background's gradient
TINT = 0.08  # largest chroma of the background; the objects' is SATURATION * VALUE = 0.81
CHUNK = 512  # images drawn at a time


@dataclass(frozen=True)
class Placement:
    """Objects of one image; lengths are fractions of the image side, (x, y) from the upper left corner."""

    label: int
    hue: float  # degrees, in [0, 360)
    centers: tuple[tuple[float, float], tuple[float, float]]  # centroids (x, y) of the left and the right object
    radii: tuple[float, float]


@dataclass(frozen=True)
class Scenes:
    """Many scenes as arrays: their placements and the gradients of their backgrounds."""

    labels: np.ndarray  # (N,) int64
    hues: np.ndarray  # (N,) float32
    centers: np.ndarray  # (N, 2 objects, 2) float32, (x, y)
    radii: np.ndarray  # (N, 2 objects) float32
    backgrounds: np.ndarray  # (N, 2 ends, 3) float32, RGB
    slopes: np.ndarray  # (N, 2) float32, change along x and y of the place between the two ends

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(*(array[rows] for array in vars(self).values()))

    def placement(self, row: int) -> Placement:
        left, right = self.centers[row].tolist()
        size_left, size_right = self.radii[row].tolist()
        centers = (left[0], left[1]), (right[0], right[1])
        return Placement(int(self.labels[row]), float(self.hues[row]), centers, (size_left, size_right))


def scenes(indices: range, seed: int = 0) -> Scenes:
    """The scenes of the images `indices`; each depends only on the seed and its index."""
    draws = np.array([numpy_generator(seed, "shapes", index).random(13) for index in indices])
    draws = draws.astype(np.float32).reshape(-1, 13)
    radii = _between(*RADII, draws[:, 0:2])
    left_edge = np.array([0, 0.5], np.float32) + np.float32(MARGIN)
    x = _between(left_edge + radii, left_edge + np.float32(0.5 - 2 * MARGIN) - radii, draws[:, 2:4])
    y = _between(MARGIN + TALL * radii, 1 - MARGIN - TALL * radii, draws[:, 4:6])
    first = _between(*LIGHTNESS, draws[:, 7])
    second = np.clip(first + _between(-SLOPE, SLOPE, draws[:, 8]), *LIGHTNESS)
    tints = hue_to_rgb(360 * draws[:, 9:11].reshape(-1), 1.0, TINT).reshape(-1, 2, 3) - np.float32(TINT / 2)
    return Scenes(
        labels=np.array([index % len(CLASSES) for index in indices], np.int64),
        hues=np.minimum(360 * draws[:, 6], np.float32(359.99)),
        centers=np.stack([x, y], axis=2),
        radii=radii,
        backgrounds=np.stack([first, second], axis=1)[:, :, None] + tints,
        slopes=_between(-1, 1, draws[:, 11:13]),
    )


def placement(index: int, seed: int = 0) -> Placement:
    """The objects of image `index`, without rendering it."""
    return scenes(range(index, index + 1), seed).placement(0)


def render(index: int, resolution: int, seed: int = 0) -> tuple[np.ndarray, int, Placement]:
    """Image `index`: uint8 (R, R, 3), its label and its objects.

    Raises UserError for an index below 0 or a resolution that is odd or below 16.
    """
    if index < 0:
        raise UserError(f"shapes: index {index} is below 0")
    scene = scenes(range(index, index + 1), seed)
    return _draw(scene, _checked(resolution))[0], int(scene.labels[0]), scene.placement(0)


def render_many(count: int, resolution: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images 0 … count - 1, uint8 (N, R, R, 3), and labels, int64 (N,). Raises UserError as `render` does."""
    if count < 1:
        raise UserError(f"shapes: {count} images asked for, at least 1 is needed")
    images = np.empty((count, _checked(resolution), resolution, 3), np.uint8)
    everything = scenes(range(count), seed)
    for start in range(0, count, CHUNK):
        images[start : start + CHUNK] = _draw(everything[start : start + CHUNK], resolution)
    return images, everything.labels


def object_masks(where: Placement, resolution: int) -> np.ndarray:
    """Masks of the pixels whose center is on the left and on the right object: bool (2, R, R)."""
    grid = pixel_centers(_checked(resolution))
    distance = SHAPES[CLASSES[where.label]]
    masks = [
        distance(grid[None, :] - np.float32(x), grid[:, None] - np.float32(y), np.array(radius, np.float32)) <= 0
        for (x, y), radius in zip(where.centers, where.radii, strict=True)
    ]
    return np.stack(masks)


def _draw(batch: Scenes, resolution: int) -> np.ndarray:
    """(N, R, R, 3) uint8: the background, then each object in its half."""
    grid = pixel_centers(resolution)
    offset = grid - np.float32(0.5)
    slope_x, slope_y = batch.slopes[:, 0, None, None], batch.slopes[:, 1, None, None]
    place = np.clip(np.float32(0.5) + slope_x * offset[None, None, :] + slope_y * offset[None, :, None], 0, 1)
    start, end = batch.backgrounds[:, None, None, 0], batch.backgrounds[:, None, None, 1]
    canvas = start + (end - start) * place[..., None]  # (N, R, R, 3)
    color = hue_to_rgb(batch.hues, SATURATION, VALUE)[:, None, None, :]
    for side, columns in enumerate((slice(0, resolution // 2), slice(resolution // 2, resolution))):
        covered = _covered(batch, side, grid[columns], grid, resolution)[..., None]
        canvas[:, :, columns] += (color - canvas[:, :, columns]) * covered
    return (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _covered(batch: Scenes, side: int, xs: np.ndarray, ys: np.ndarray, resolution: int) -> np.ndarray:
    """(N, Y, X) float32: coverage of each pixel by the object of this side (0 left, 1 right)."""
    covered = np.empty((len(batch.labels), len(ys), len(xs)), np.float32)
    for label, name in enumerate(CLASSES):
        rows = batch.labels == label
        centers, radii = batch.centers[rows, side], batch.radii[rows, side, None, None]
        dx, dy = xs[None, None, :] - centers[:, 0, None, None], ys[None, :, None] - centers[:, 1, None, None]
        covered[rows] = coverage(SHAPES[name](dx, dy, radii), resolution)
    return covered


def _between(low: float | np.ndarray, high: float | np.ndarray, share: np.ndarray) -> np.ndarray:
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low + (high - low) * share


def _checked(resolution: int) -> int:
    if resolution < 16 or resolution % 2:
        raise UserError(f"shapes: resolution {resolution} is not an even number from 16 up")
    return resolution

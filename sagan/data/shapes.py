"""The embedded data sets: distant objects with the same shape (the class), whose hues depend on each other.

`shapes` has one pair of partners, left and right, with the same hue. `pairs` has two, on the diagonals; partners have
opposite hues, and the pairs are independent.

Image `index` of a `seed` is a scene in relative units, so it is the same at every resolution. Each object has its own
place and size in its part of the image, MARGIN away from the border and the other parts. The class is index mod 4, a
hue uniform on the circle, the background a gradient between two near-grays (docs/shapes.md).
"""

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, eq=False)
class Variant:
    """Where the objects are and how their hues are related. The image is divided into rows × columns equal parts with
    one object each; they are numbered row by row."""

    name: str
    classes: tuple[str, ...]
    rows: int
    columns: int
    pairs: tuple[tuple[int, int], ...]  # partners
    radii: tuple[float, float]  # of an object, the least and the largest; its half width
    turn: int  # hue of the second partner relative to the first, degrees

    @property
    def objects(self) -> int:
        return self.rows * self.columns

    @property
    def partners(self) -> list[int]:
        """The partner of each object."""
        return [other for i in range(self.objects) for pair in self.pairs if i in pair for other in pair if other != i]

    @property
    def pair_of(self) -> list[int]:
        """The number of each object's pair."""
        return [number for i in range(self.objects) for number, pair in enumerate(self.pairs) if i in pair]

    @property
    def turns(self) -> list[int]:
        """The hue of each object relative to the first one of its pair, degrees."""
        return [self.turn * (self.pairs[pair][1] == i) for i, pair in enumerate(self.pair_of)]


ONE_PAIR = Variant("shapes", CLASSES, 1, 2, ((0, 1),), (0.14, 0.20), 0)
NAMES = ("discs", "squares", "triangles", "crosses")
TWO_PAIRS = Variant("pairs", NAMES, 2, 2, ((0, 3), (1, 2)), (0.12, 0.16), 180)
VARIANTS = {variant.name: variant for variant in (ONE_PAIR, TWO_PAIRS)}


def variant_of(class_names: Sequence[str]) -> Variant | None:
    """The data set that has these classes, if it is an embedded one."""
    return next((variant for variant in VARIANTS.values() if variant.classes == tuple(class_names)), None)


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
    hues: tuple[float, ...]  # of the first object of each pair, degrees in [0, 360)
    centers: tuple[tuple[float, float], ...]  # centroid (x, y) of each object
    radii: tuple[float, ...]


@dataclass(frozen=True)
class Scenes:
    """Many scenes as arrays: their placements and the gradients of their backgrounds."""

    labels: np.ndarray  # (N,) int64
    hues: np.ndarray  # (N, pairs) float32, of the first object of each pair
    centers: np.ndarray  # (N, objects, 2) float32, (x, y)
    radii: np.ndarray  # (N, objects) float32
    backgrounds: np.ndarray  # (N, 2 ends, 3) float32, RGB
    slopes: np.ndarray  # (N, 2) float32, change along x and y of the place between the two ends

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(*(array[rows] for array in vars(self).values()))

    def placement(self, row: int) -> Placement:
        centers = tuple((x, y) for x, y in self.centers[row].tolist())
        return Placement(
            int(self.labels[row]), tuple(self.hues[row].tolist()), centers, tuple(self.radii[row].tolist())
        )


def scenes(indices: range, seed: int = 0, variant: Variant = ONE_PAIR) -> Scenes:
    """The scenes of the images `indices`; each depends only on the seed and its index."""
    count, pairs = variant.objects, len(variant.pairs)
    sizes = [count, count, count, pairs, 1, 1, 2, 2]
    draws = np.array([numpy_generator(seed, variant.name, index).random(sum(sizes)) for index in indices])
    draws = draws.astype(np.float32).reshape(-1, sum(sizes))
    size, x, y, hue, lightness, change, tint, slope = np.split(draws, np.cumsum(sizes)[:-1], axis=1)
    radii = _between(*variant.radii, size)
    row, column = np.divmod(np.arange(count), variant.columns)
    left = (column / variant.columns).astype(np.float32) + np.float32(MARGIN)
    top, bottom = ((edge / variant.rows).astype(np.float32) for edge in (row, row + 1))
    x = _between(left + radii, left + np.float32(1 / variant.columns - 2 * MARGIN) - radii, x)
    y = _between(top + MARGIN + TALL * radii, bottom - MARGIN - TALL * radii, y)
    first = _between(*LIGHTNESS, lightness[:, 0])
    second = np.clip(first + _between(-SLOPE, SLOPE, change[:, 0]), *LIGHTNESS)
    tints = hue_to_rgb(360 * tint.reshape(-1), 1.0, TINT).reshape(-1, 2, 3) - np.float32(TINT / 2)
    return Scenes(
        labels=np.array([index % len(variant.classes) for index in indices], np.int64),
        hues=np.minimum(360 * hue, np.float32(359.99)),
        centers=np.stack([x, y], axis=2),
        radii=radii,
        backgrounds=np.stack([first, second], axis=1)[:, :, None] + tints,
        slopes=_between(-1, 1, slope),
    )


def placement(index: int, seed: int = 0, variant: Variant = ONE_PAIR) -> Placement:
    """The objects of image `index`, without rendering it."""
    return scenes(range(index, index + 1), seed, variant).placement(0)


def render(
    index: int, resolution: int, seed: int = 0, variant: Variant = ONE_PAIR
) -> tuple[np.ndarray, int, Placement]:
    """Image `index`: uint8 (R, R, 3), its label and its objects.

    Raises UserError for an index below 0 or a resolution that is odd or below 16.
    """
    if index < 0:
        raise UserError(f"{variant.name}: index {index} is below 0")
    scene = scenes(range(index, index + 1), seed, variant)
    return _draw(scene, _checked(resolution), variant)[0], int(scene.labels[0]), scene.placement(0)


def render_many(
    count: int, resolution: int, seed: int = 0, variant: Variant = ONE_PAIR
) -> tuple[np.ndarray, np.ndarray]:
    """Images 0 … count - 1, uint8 (N, R, R, 3), and labels, int64 (N,). Raises UserError as `render` does."""
    if count < 1:
        raise UserError(f"{variant.name}: {count} images asked for, at least 1 is needed")
    images = np.empty((count, _checked(resolution), resolution, 3), np.uint8)
    everything = scenes(range(count), seed, variant)
    for start in range(0, count, CHUNK):
        images[start : start + CHUNK] = _draw(everything[start : start + CHUNK], resolution, variant)
    return images, everything.labels


def object_masks(where: Placement, resolution: int) -> np.ndarray:
    """Masks of the pixels whose center is on each object: bool (objects, R, R)."""
    grid = pixel_centers(_checked(resolution))
    distance = SHAPES[CLASSES[where.label]]
    masks = [
        distance(grid[None, :] - np.float32(x), grid[:, None] - np.float32(y), np.array(radius, np.float32)) <= 0
        for (x, y), radius in zip(where.centers, where.radii, strict=True)
    ]
    return np.stack(masks)


def _draw(batch: Scenes, resolution: int, variant: Variant) -> np.ndarray:
    """(N, R, R, 3) uint8: the background, then each object in its part."""
    grid = pixel_centers(resolution)
    offset = grid - np.float32(0.5)
    slope_x, slope_y = batch.slopes[:, 0, None, None], batch.slopes[:, 1, None, None]
    place = np.clip(np.float32(0.5) + slope_x * offset[None, None, :] + slope_y * offset[None, :, None], 0, 1)
    start, end = batch.backgrounds[:, None, None, 0], batch.backgrounds[:, None, None, 1]
    canvas = start + (end - start) * place[..., None]  # (N, R, R, 3)
    for number, pair in enumerate(variant.pair_of):
        row, column = divmod(number, variant.columns)
        rows, columns = (
            slice(at * resolution // parts, (at + 1) * resolution // parts)
            for at, parts in ((row, variant.rows), (column, variant.columns))
        )
        hues = batch.hues[:, pair] + np.float32(variant.turns[number])
        color = hue_to_rgb(hues, SATURATION, VALUE)[:, None, None, :]
        covered = _covered(batch, number, grid[columns], grid[rows], resolution)[..., None]
        canvas[:, rows, columns] += (color - canvas[:, rows, columns]) * covered
    return (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _covered(batch: Scenes, number: int, xs: np.ndarray, ys: np.ndarray, resolution: int) -> np.ndarray:
    """(N, Y, X) float32: coverage of each pixel by one of the objects."""
    covered = np.empty((len(batch.labels), len(ys), len(xs)), np.float32)
    for label, name in enumerate(CLASSES):
        rows = batch.labels == label
        centers, radii = batch.centers[rows, number], batch.radii[rows, number, None, None]
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

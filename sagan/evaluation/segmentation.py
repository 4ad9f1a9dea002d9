"""Finding the objects of `shapes`-like images: colour against the background, connected components, templates.

The backgrounds of `shapes` are near-greys and the objects saturated, so an object is where the colour lies far from the
background's in the plane of hue and chroma, whatever the lightness. The thresholds are a viewer's rather than the
renderer's: paler, blurred or noisy objects count, specks do not.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sagan.data.rendering import SHAPES, coverage, pixel_centres, rgb_to_hue
from sagan.data.shapes import SATURATION, VALUE
from sagan.errors import UserError

WORKING_RESOLUTION = 64  # larger images are averaged down to this
SMOOTHING = 0.02  # standard deviation of the Gaussian, as a fraction of the image side: 0.64 pixels at 32
CHROMA = 0.3  # distance from the background's colour from which a pixel belongs to an object; rendered objects: 0.8
SMALLEST = 0.01  # of the image's area: a smaller component is a speck and does not count (rendered objects: from 0.033)
TEMPLATE_BLURS = (SMOOTHING, 0.037)  # of the image side: a sharp object, one that was blurred by 1 pixel at 32 besides
TEMPLATE_SCALES = (0.9, 0.95, 1.0)  # of the radius that gives the object's area: blur inflates small objects
WINDOW = 0.66  # side of the square around an object in which templates are compared
CHUNK = 256  # images, or objects, worked on at a time
IN_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))], bool)  # 4 neighbours


@dataclass(frozen=True)
class Objects:
    """All objects of a batch of images, ordered by image, then from left to right (M objects)."""

    image: np.ndarray  # (M,) int64: which image
    centre: np.ndarray  # (M, 2): centroid (x, y), fractions of the image side from the upper left corner
    area: np.ndarray  # (M,): fraction of the image
    hue: np.ndarray  # (M,): degrees in [0, 360)
    scores: np.ndarray  # (M, classes): overlap with the best template of each class, 1 for the same

    @property
    def shape(self) -> np.ndarray:
        """(M,) int64: the class of the best template."""
        return self.scores.argmax(1)

    def __getitem__(self, rows: np.ndarray) -> "Objects":
        return Objects(*(array[rows] for array in vars(self).values()))


def find_objects(images: np.ndarray) -> Objects:
    """Segment every image: uint8 (N, R, R, 3) to the objects found in each, of any number.

    Raises UserError for another type or form, or a side below 16.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise UserError(f"coherence: images must be uint8 (N, R, R, 3), these are {images.dtype} {images.shape}")
    if len(images) < 1 or images.shape[1] < 16:
        raise UserError(f"coherence: at least one image of at least 16x16 is needed, got {images.shape}")
    parts = [_find(images[start : start + CHUNK], start) for start in range(0, len(images), CHUNK)]
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return Objects(*(np.concatenate(field) for field in fields))


def _find(images: np.ndarray, first: int) -> Objects:
    rgb = _reduce(images)
    side = rgb.shape[1]
    distance = _distance_to_background(rgb)
    labels, count = _components(distance)
    core = np.flatnonzero(labels)
    which, strength = labels.flat[core], distance.flat[core]
    power = _sums(which, strength**2, count)
    level = power / _sums(which, strength, count)  # a mean that the interior rules, not the rim
    channels = rgb.reshape(-1, 3)[core].T
    colours = np.stack([_sums(which, strength**2 * channel, count) / power for channel in channels], axis=1)

    labels = np.where(labels == 0, ndimage.maximum_filter(labels, (1, 3, 3)), labels)  # with the soft rim
    covered = np.where(labels > 0, np.minimum(distance / np.append(1, level)[labels], 1), 0).astype(np.float32)
    place = np.flatnonzero(labels)
    which, weight = labels.flat[place], covered.flat[place]
    image, y, x = np.unravel_index(place, labels.shape)
    mass = _sums(which, weight, count)
    centre = np.stack([_sums(which, weight * (axis + 0.5), count) / mass for axis in (x, y)], axis=1)
    owner = np.zeros(count, np.int64)
    owner[which - 1] = image
    objects = Objects(
        image=owner + first,
        centre=centre / side,
        area=mass / side**2,
        hue=rgb_to_hue(colours),
        scores=_overlaps(covered, labels, owner, centre, mass),
    )
    return objects[np.lexsort((objects.centre[:, 0], objects.image))]


def _reduce(images: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], averaged in square blocks down to about WORKING_RESOLUTION."""
    count, side = images.shape[:2]
    block = max(1, side // WORKING_RESOLUTION)
    whole = side - side % block
    blocks = images[:, :whole, :whole].reshape(count, whole // block, block, whole // block, block, 3)
    return blocks.mean((2, 4), dtype=np.float32) / np.float32(255)


def _distance_to_background(rgb: np.ndarray) -> np.ndarray:
    """(N, R, R): how far a pixel lies from the image's median colour in the plane of hue and chroma, smoothed.

    The objects cover less than half of an image, so the median is the background's.
    """
    red, green, blue = np.moveaxis(rgb, 3, 0)
    plane = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(0.75))])
    sigma = SMOOTHING * rgb.shape[1]
    plane = ndimage.gaussian_filter(plane, (0, 0, sigma, sigma), mode="nearest")
    plane -= np.median(plane, axis=(2, 3), keepdims=True)
    return np.sqrt((plane**2).sum(0))


def _components(distance: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components of each image that are no specks: labels (N, R, R) from 1, their count."""
    labels = np.empty(distance.shape, np.int32)
    count = int(ndimage.label(distance > CHROMA, IN_PLANE, output=labels))  # type: ignore[arg-type]
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= SMALLEST * distance[0].size
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels], int(kept.sum())


def _sums(which: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,) sum of the values of each object; objects are numbered from 1."""
    return np.bincount(which - 1, weights=values, minlength=count).astype(np.float64)  # without objects it is int64


def _overlaps(
    covered: np.ndarray, labels: np.ndarray, owner: np.ndarray, centre: np.ndarray, mass: np.ndarray
) -> np.ndarray:
    """(M, classes): overlap of each object with the best template of each class, placed on its centroid.

    The overlap (Jaccard) of soft masks a, b is sum min(a, b) / sum max(a, b). `centre` (M, 2), `mass` (M,): in pixels.
    """
    side = covered.shape[1]
    half = round(WINDOW * side / 2)
    covered, labels = (np.pad(array, ((0, 0), (half, half), (half, half))) for array in (covered, labels))
    scores = np.zeros((len(owner), len(SHAPES)))
    reach = np.arange(2 * half)
    for start in range(0, len(owner), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(owner)))
        x, y = (np.floor(centre[rows, axis, None]).astype(np.int64) + reach for axis in (0, 1))  # in the padded image
        window = owner[rows, None, None], y[:, :, None], x[:, None, :]
        masks = np.where(labels[window] == rows[:, None, None] + 1, covered[window], 0)
        dx = (x - half + 0.5 - centre[rows, 0, None]).astype(np.float32)[:, None, :]
        dy = (y - half + 0.5 - centre[rows, 1, None]).astype(np.float32)[:, :, None]
        for label, area in enumerate(_unit_areas()):
            for scale in TEMPLATE_SCALES:
                radius = (scale * np.sqrt(mass[rows] / area)).astype(np.float32)[:, None, None]
                for template in _templates(label, dx, dy, radius, side):
                    shared, both = np.minimum(masks, template), np.maximum(masks, template)
                    scores[rows, label] = np.maximum(scores[rows, label], shared.sum((1, 2)) / both.sum((1, 2)))
    return scores


def _templates(label: int, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray, side: int) -> list[np.ndarray]:
    """One shape as it looks after drawing, each blur, and the levelling of `_find`: soft masks (M, window, window)."""
    drawn = coverage(list(SHAPES.values())[label](dx, dy, radius), resolution=1)
    templates = []
    for blur in TEMPLATE_BLURS:
        template = ndimage.gaussian_filter(drawn, (0, blur * side, blur * side))
        core = np.where(template > CHROMA / (SATURATION * VALUE), template, 0)
        level = (core**2).sum((1, 2), keepdims=True) / np.maximum(core.sum((1, 2), keepdims=True), 1e-6)
        templates.append(np.minimum(template / np.maximum(level, 1e-6), 1))
    return templates


def _unit_areas() -> list[float]:
    """The area of each shape of radius 1."""
    grid = (pixel_centres(64) - np.float32(0.5)) * np.float32(2.5)
    drawn = (
        coverage(distance(grid[None], grid[:, None], np.ones(1, np.float32)), 64, 2.5) for distance in SHAPES.values()
    )
    return [float(mask.mean()) * 2.5**2 for mask in drawn]

"""Finding the objects of `shapes`-like images: colour against the background, connected components, templates.

The backgrounds of `shapes` are near-greys and the objects saturated, so an object is where the colour lies far from the
background's in the plane of hue and chroma, whatever the lightness. The thresholds are those of a viewer rather than
of the renderer: paler, blurred or noisy objects count, specks do not.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sagan.data.rendering import SHAPES, coverage, pixel_centres, rgb_to_hue
from sagan.errors import UserError

WORKING_RESOLUTION = 64  # larger images are averaged down to this
SMOOTHING = 0.02  # standard deviation of the Gaussian, as a fraction of the image side: 0.64 pixels at 32
CHROMA = 0.3  # distance from the background's colour from which a pixel belongs to an object; rendered objects: ~0.8
SMALLEST = 0.01  # of the image's area: a smaller component is a speck and does not count (rendered objects: from 0.034)
SOFTNESS = 2.0  # pixels: width of a template's outline, as wide as rendering and smoothing make it
WINDOW = 0.66  # side of the square around an object in which templates are compared
CHUNK = 256
NEIGHBOURS = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))], bool)


@dataclass(frozen=True)
class Objects:
    """All objects of a batch of images, ordered by image, then from left to right (M objects)."""

    image: np.ndarray  # (M,) int64: which image
    centre: np.ndarray  # (M, 2): centroid (x, y), fractions of the image side from the upper left corner
    area: np.ndarray  # (M,): fraction of the image
    hue: np.ndarray  # (M,): degrees in [0, 360)
    scores: np.ndarray  # (M, classes): overlap (intersection over union) with the best template of each class

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
    which = labels.ravel()[core]
    strength = distance.ravel()[core]
    level = _sums(which, strength**2, count) / _sums(which, strength, count)  # colour of the interior, not of the rim
    colours = np.stack([_sums(which, strength**2 * channel.ravel()[core], count) for channel in np.moveaxis(rgb, 3, 0)])
    colours /= _sums(which, strength**2, count)

    grown = np.where(labels == 0, ndimage.maximum_filter(labels, (1, 3, 3)), labels)  # the soft rim belongs to it
    covered = np.where(grown > 0, np.minimum(distance / np.append(1, level)[grown], 1), 0).astype(np.float32)
    place = np.flatnonzero(grown)
    which, weight = grown.ravel()[place], covered.ravel()[place]
    image, y, x = np.unravel_index(place, grown.shape)
    mass = _sums(which, weight, count)
    centre = np.stack([_sums(which, weight * (axis + 0.5), count) / mass for axis in (x, y)], axis=1)
    owner = np.zeros(count, np.int64)
    owner[which - 1] = image
    objects = Objects(
        image=owner + first,
        centre=centre / side,
        area=mass / side**2,
        hue=rgb_to_hue(colours.T),
        scores=_overlaps(covered, grown, owner, centre, mass),
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
    plane = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(0.75))])  # hexagon: chroma ~ length
    sigma = SMOOTHING * rgb.shape[1]
    plane = ndimage.gaussian_filter(plane, (0, 0, sigma, sigma), mode="nearest")
    plane -= np.median(plane, axis=(2, 3), keepdims=True)
    return np.sqrt((plane**2).sum(0))


def _components(distance: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components of each image that are no specks: labels (N, R, R) from 1, their count."""
    labels, count = ndimage.label(distance > CHROMA, structure=NEIGHBOURS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) / distance[0].size
    kept = sizes >= SMALLEST
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels], int(kept.sum())


def _sums(which: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,) sum of the values of each object; objects are numbered from 1."""
    return np.bincount(which - 1, weights=values, minlength=count).astype(np.float64)  # an empty one is int64


def _overlaps(
    covered: np.ndarray, labels: np.ndarray, owner: np.ndarray, centre: np.ndarray, mass: np.ndarray
) -> np.ndarray:
    """(M, classes): overlap of each object with the templates of equal centroid and area.

    Overlap of soft masks a, b: sum min(a, b) / sum max(a, b). `centre` (M, 2) and `mass` (M,) are in pixels.
    """
    half = round(WINDOW * covered.shape[1] / 2)
    padding = ((0, 0), (half, half), (half, half))
    covered, labels = np.pad(covered, padding), np.pad(labels, padding)
    scores = np.empty((len(owner), len(SHAPES)))
    reach = np.arange(2 * half)
    for chunk in np.split(np.arange(len(owner)), range(CHUNK, len(owner), CHUNK)):
        corner = np.floor(centre[chunk]).astype(np.int64)  # of the window, in the padded image: (x, y)
        rows, columns = corner[:, 1, None] + reach, corner[:, 0, None] + reach
        place = (owner[chunk, None, None], rows[:, :, None], columns[:, None, :])
        masks = np.where(labels[place] == chunk[:, None, None] + 1, covered[place], 0)
        dx = (columns - half + 0.5 - centre[chunk, 0, None])[:, None, :].astype(np.float32)
        dy = (rows - half + 0.5 - centre[chunk, 1, None])[:, :, None].astype(np.float32)
        for label, (distance, area) in enumerate(zip(SHAPES.values(), _unit_areas(), strict=True)):
            radius = np.sqrt(mass[chunk] / area)[:, None, None].astype(np.float32)
            template = coverage(distance(dx, dy, radius), 1, SOFTNESS)
            shared, both = np.minimum(masks, template), np.maximum(masks, template)
            scores[chunk, label] = shared.sum((1, 2)) / both.sum((1, 2))
    return scores


def _unit_areas() -> list[float]:
    """The area of each shape of radius 1."""
    grid = (pixel_centres(64) - np.float32(0.5)) * np.float32(2.5)
    one = np.float32(1)
    return [
        float(coverage(distance(grid[None], grid[:, None], one), 64, 2.5).mean() * 2.5**2) for distance in SHAPES.values()
    ]

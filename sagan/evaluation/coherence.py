"""Coherence of generated `shapes` and `pairs`: far-apart objects agree in shape and in hue, as in every real image.

The scores are defined beside their fields below and in docs/shapes.md, which also lists those of real, shuffled,
blurred, collapsed and random images. Claims about attention rest on `hue_agreement`: the label does not determine the
hue, so far-apart objects can agree in it only if the generator, or its training signal, looks across the image.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from sagan.data.shapes import (
    CLASSES,
    ONE_PAIR,
    SATURATION,
    SHAPES,
    VALUE,
    Variant,
    coverage,
    pixel_centers,
    rgb_to_hue,
    scenes,
)  # fmt: skip
from sagan.utils.errors import UserError

WORKING_RESOLUTION = 64  # larger images are averaged down to this
SMOOTHING = 0.02  # standard deviation of the Gaussian, as a fraction of the image side: 0.64 pixels at 32
CHROMA = 0.3  # distance from the background's color from which a pixel belongs to an object; rendered objects: 0.8
SMALLEST = 0.01  # of the image's area: a smaller component is a speck and does not count (rendered objects: from 0.033)
TEMPLATE_BLURS = (SMOOTHING, 0.037)  # of the image side: a sharp object, one that was blurred by 1 pixel at 32 besides
TEMPLATE_SCALES = (0.9, 0.95, 1.0)  # of the radius that gives the object's area: blur inflates small objects
WINDOW = 0.66  # side of the square around an object in which templates are compared
CHUNK = 256  # images, or objects, worked on at a time
IN_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))], bool)  # 4 neighbors


@dataclass(frozen=True)
class Objects:
    """The M objects of a batch of images, ordered by image, then from left to right."""

    image: np.ndarray  # (M,) int64: which image
    center: np.ndarray  # (M, 2): centroid (x, y), fractions of the image side from the upper left corner
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
    """Segment every image, uint8 (N, R, R, 3), into any number of objects.

    UserError for another type or shape, or a side below 16.
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
    level = power / _sums(which, strength, count)  # a mean dominated by the interior, not the rim
    channels = rgb.reshape(-1, 3)[core].T
    colors = np.stack([_sums(which, strength**2 * channel, count) / power for channel in channels], axis=1)

    labels = np.where(labels == 0, ndimage.maximum_filter(labels, (1, 3, 3)), labels)  # with the soft rim
    covered = np.where(labels > 0, np.minimum(distance / np.append(1, level)[labels], 1), 0).astype(np.float32)
    place = np.flatnonzero(labels)
    which, weight = labels.flat[place], covered.flat[place]
    image, y, x = np.unravel_index(place, labels.shape)
    mass = _sums(which, weight, count)
    center = np.stack([_sums(which, weight * (axis + 0.5), count) / mass for axis in (x, y)], axis=1)
    owner = np.zeros(count, np.int64)
    owner[which - 1] = image
    objects = Objects(
        image=owner + first,
        center=center / side,
        area=mass / side**2,
        hue=rgb_to_hue(colors),
        scores=_overlaps(covered, labels, owner, center, mass),
    )
    return objects[np.lexsort((objects.center[:, 0], objects.image))]


def _reduce(images: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], averaged in square blocks down to about WORKING_RESOLUTION."""
    count, side = images.shape[:2]
    block = max(1, side // WORKING_RESOLUTION)
    whole = side - side % block
    blocks = images[:, :whole, :whole].reshape(count, whole // block, block, whole // block, block, 3)
    return blocks.mean((2, 4), dtype=np.float32) / np.float32(255)


def _distance_to_background(rgb: np.ndarray) -> np.ndarray:
    """Distance (N, R, R) of a pixel to the image's median color in the plane of hue and chroma, smoothed.

    The objects cover less than half of an image, so the median is the background's.
    """
    red, green, blue = np.moveaxis(rgb, 3, 0)
    plane = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(0.75))])
    sigma = SMOOTHING * rgb.shape[1]
    plane = ndimage.gaussian_filter(plane, (0, 0, sigma, sigma), mode="nearest")
    plane -= np.median(plane, axis=(2, 3), keepdims=True)
    return np.sqrt((plane**2).sum(0))


def _components(distance: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components that are not specks: labels (N, R, R) from 1, and their count."""
    labels = np.empty(distance.shape, np.int32)
    count = int(ndimage.label(distance > CHROMA, IN_PLANE, output=labels))  # type: ignore[arg-type]
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= SMALLEST * distance[0].size
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels], int(kept.sum())


def _sums(which: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,) sum of the values of each object; objects are numbered from 1."""
    return np.bincount(which - 1, weights=values, minlength=count).astype(np.float64)  # without objects it is int64


def _overlaps(
    covered: np.ndarray, labels: np.ndarray, owner: np.ndarray, center: np.ndarray, mass: np.ndarray
) -> np.ndarray:
    """(M, classes): overlap of each object with the best template of each class, placed on its centroid.

    The overlap (Jaccard) of soft masks a, b is sum min(a, b) / sum max(a, b). `center` (M, 2), `mass` (M,): in pixels.
    """
    side = covered.shape[1]
    half = round(WINDOW * side / 2)
    covered, labels = (np.pad(array, ((0, 0), (half, half), (half, half))) for array in (covered, labels))
    scores = np.zeros((len(owner), len(SHAPES)))
    reach = np.arange(2 * half)
    for start in range(0, len(owner), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(owner)))
        x, y = (np.floor(center[rows, axis, None]).astype(np.int64) + reach for axis in (0, 1))  # in the padded image
        window = owner[rows, None, None], y[:, :, None], x[:, None, :]
        masks = np.where(labels[window] == rows[:, None, None] + 1, covered[window], 0)
        dx = (x - half + 0.5 - center[rows, 0, None]).astype(np.float32)[:, None, :]
        dy = (y - half + 0.5 - center[rows, 1, None]).astype(np.float32)[:, :, None]
        for label, area in enumerate(_unit_areas()):
            for scale in TEMPLATE_SCALES:
                radius = (scale * np.sqrt(mass[rows] / area)).astype(np.float32)[:, None, None]
                for template in _templates(label, dx, dy, radius, side):
                    shared, both = np.minimum(masks, template), np.maximum(masks, template)
                    scores[rows, label] = np.maximum(scores[rows, label], shared.sum((1, 2)) / both.sum((1, 2)))
    return scores


def _templates(label: int, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray, side: int) -> list[np.ndarray]:
    """Soft masks (M, window, window) of one shape after drawing, each blur, and the leveling of `_find`."""
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
    grid = (pixel_centers(64) - np.float32(0.5)) * np.float32(2.5)
    drawn = (
        coverage(distance(grid[None], grid[:, None], np.ones(1, np.float32)), 64, 2.5) for distance in SHAPES.values()
    )
    return [float(mask.mean()) * 2.5**2 for mask in drawn]


AREAS = (0.015, 0.16)  # of the image: what a clear object covers (rendered: 0.033 to 0.103)
CLEAR = 0.6  # overlap with the best template from which an object is clear (rendered: above 0.9; noise: around 0.5)
HUE_BINS, COLUMNS, ROWS = 12, 8, 8
REFERENCE_SCENES = 8192
PAIRINGS = 100  # with other images, for the hue difference that chance would give


@dataclass(frozen=True)
class Coherence:
    """Every score but the first two is computed over the images with as many objects as in the data, all clear.

    Without such images the agreements are 0, the hue difference 90 and the distances 1.
    """

    coherence: float  # product of the scores below, 0 to 1; of agreements above chance, of 1 - each distance
    all_objects: float  # share of images with exactly as many objects as in the data, all clear
    hue_agreement: float  # 1 - hue_difference / its mean between objects of different images of one class; 0 is chance
    hue_difference: float  # mean angle between the hues of partners, degrees
    shape_agreement: float  # share of images whose objects have one class; 1 / classes^(objects - 1) is chance
    hue_distance: float  # of the hue histogram to the data's, 0 (as real images) to 1
    position_distance: float
    class_distance: float
    pair_distance: float | None = None  # … of the hues of one pair relative to the other's, for two pairs
    label_agreement: float | None = None  # share of images all of whose objects have the class of the label

    def to_dict(self) -> dict[str, float]:
        """The scores by name, without missing ones. `all_objects` is called `two_objects` if there is one pair."""
        first = "two_objects" if self.pair_distance is None else "four_objects"
        scores = {first if name == "all_objects" else name: value for name, value in asdict(self).items()}
        return {name: value for name, value in scores.items() if value is not None}


def coherence(images: np.ndarray, labels: np.ndarray | None = None, variant: Variant = ONE_PAIR) -> Coherence:
    """Score images, uint8 (N, R, R, 3), that should look like `variant`; `labels` (N,): the requested classes.

    UserError for images of another shape, or labels that are not one per image.
    """
    if labels is not None and np.shape(labels) != (len(images),):
        raise UserError(f"coherence: {len(images)} images need as many labels, got {np.shape(labels)}")
    chosen, found = clear_objects(find_objects(images), variant)
    one, count = variant is ONE_PAIR, variant.objects
    if not len(chosen):
        ones = (1.0,) * (3 if one else 4)
        return Coherence(0.0, 0.0, 0.0, 90.0, 0.0, *ones, label_agreement=None if labels is None else 0.0)
    hues, shapes = pair_hues(found, variant), found.shape.reshape(-1, count)
    wanted = shapes[:, 0] if labels is None else np.asarray(labels)[chosen]
    difference, expected = hue_differences(hues, wanted, variant)
    hue_agreement = 1 - difference / expected if expected > 1 else 0.0  # one hue only: nothing to agree about
    shape_agreement = float((shapes == shapes[:, :1]).all(1).mean())
    uniform_hues, uniform_classes = (np.full(n, 1 / n) for n in (HUE_BINS, len(CLASSES)))
    distances = [
        _distance(_hue_bins(found.hue), uniform_hues, len(variant.pairs) * len(chosen)),
        _distance(_cells(found.center), position_frequencies(variant), len(found.hue)),
        _distance(found.shape, uniform_classes, len(chosen)),
    ]
    if not one:
        (first, _), (second, _) = variant.pairs
        distances.append(_distance(_hue_bins(hues[:, first] - hues[:, second]), uniform_hues, len(chosen)))
    all_objects, chance = len(chosen) / len(images), len(CLASSES) ** (1 - count)
    above_chance = max(0.0, (shape_agreement - chance) / (1 - chance))
    return Coherence(
        float(all_objects * max(0.0, hue_agreement) * above_chance * np.prod([1 - distance for distance in distances])),
        all_objects,
        hue_agreement,
        difference,
        shape_agreement,
        *distances,
        label_agreement=None if labels is None else float((shapes == wanted[:, None]).all(1).mean()),
    )


def clear_objects(objects: Objects, variant: Variant) -> tuple[np.ndarray, Objects]:
    """The images with exactly as many objects as in the data, all clear: their indices (P,), and their objects in the
    data's order (P·objects): row by row, each from left to right."""
    clear = (objects.area >= AREAS[0]) & (objects.area <= AREAS[1]) & (objects.scores.max(1, initial=0) >= CLEAR)
    image, counts = np.unique(objects.image, return_counts=True)
    clear_counts = np.bincount(objects.image, weights=clear, minlength=1)[image]
    chosen = image[(counts == variant.objects) & (clear_counts == variant.objects)]
    found = objects[np.isin(objects.image, chosen)]
    by_height = np.lexsort((found.center[:, 1], found.image)) if variant.rows > 1 else np.arange(len(found.image))
    row = np.arange(len(by_height)) // variant.columns  # of all images' rows
    return chosen, found[by_height[np.lexsort((found.center[by_height, 0], row))]]


@lru_cache
def position_frequencies(variant: Variant = ONE_PAIR) -> np.ndarray:
    """Relative frequencies (ROWS * COLUMNS,) of object centers in the data, counted over many scenes."""
    cells = _cells(scenes(range(REFERENCE_SCENES), variant=variant).centers.reshape(-1, 2))
    return np.bincount(cells, minlength=ROWS * COLUMNS) / len(cells)


def _hue_bins(hues: np.ndarray) -> np.ndarray:
    return (hues % 360 * (HUE_BINS / 360)).astype(int) % HUE_BINS


def hue_angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The angle between hues, 0 to 180 degrees."""
    return np.abs((a - b + 180) % 360 - 180)


def pair_hues(objects: Objects, variant: Variant) -> np.ndarray:
    """Hues of clear objects (P, objects), turned so that those of partners are equal in the data."""
    return (objects.hue.reshape(-1, variant.objects) - variant.turns) % 360


def hue_differences(hues: np.ndarray, classes: np.ndarray, variant: Variant) -> tuple[float, float]:
    """Mean angle between partners of `pair_hues`, and between those of different images of a class."""
    partners = [hues[:, pair] for pair in variant.pairs]
    return (
        float(np.mean([hue_angle(*each.T).mean() for each in partners])),
        float(np.mean([_difference_by_chance(each, classes) for each in partners])),
    )


def _difference_by_chance(hues: np.ndarray, classes: np.ndarray) -> float:
    """Mean angle between the first object of one image and the second one of another image of the same class.

    Within a class, because a generator that ties the hue to the label agrees without looking across the image; from
    the images themselves, because few hues agree by chance. 0 if no class has two images.
    """
    total, count = 0.0, 0
    for label in np.unique(classes):
        left, right = hues[classes == label].T
        shifts = np.unique(np.linspace(1, len(left) - 1, PAIRINGS).astype(int)) if len(left) > 1 else []
        for shift in shifts:
            total += hue_angle(left, np.roll(right, shift)).mean() * len(left) / len(shifts)
        count += len(left) if len(left) > 1 else 0
    return float(total / count) if count else 0.0


def _cells(centers: np.ndarray) -> np.ndarray:
    """The cell (M,) of each center (M, 2) in a grid, numbered row by row."""
    column, row = np.minimum((centers * (COLUMNS, ROWS)).astype(int), (COLUMNS - 1, ROWS - 1)).T
    return row * COLUMNS + column


def _distance(values: np.ndarray, frequencies: np.ndarray, drawn: int) -> float:
    """Total variation distance of a histogram to the data's, corrected for the expected distance of real samples.

    Sampling alone moves each bin by sqrt(2 p (1 - p) / (pi n)) on average; the rest is scaled so that 1 stays 1.
    """
    counts = np.bincount(values, minlength=len(frequencies))
    variation = 0.5 * float(np.abs(counts / counts.sum() - frequencies).sum())
    variance = frequencies * (1 - frequencies) * (1 / drawn + 1 / (2 * REFERENCE_SCENES))
    by_chance = 0.5 * float(np.sqrt(2 * variance / np.pi).sum())
    return (variation - by_chance) / (1 - by_chance) if variation > by_chance else 0.0

"""How well generated `shapes` show what every real one does: two far-apart objects that agree in shape and in hue.

The figures are defined beside their fields below and in docs/shapes.md, which also shows what real, shuffled, blurred,
collapsed and random images get. The claim about attention is judged on `hue_agreement`: hue is nowhere in the label,
so far-apart objects can agree in it only if the generator, or what teaches it, looks across the image.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from sagan.data.shapes import CLASSES, scenes
from sagan.errors import UserError
from sagan.evaluation.segmentation import Objects, find_objects

AREAS = (0.015, 0.16)  # of the image: what a clear object covers (rendered: 0.033 to 0.103)
CLEAR = 0.6  # overlap with the best template from which an object is clear (rendered: above 0.9; noise: around 0.5)
HUE_BINS, COLUMNS, ROWS = 12, 8, 8
REFERENCE_SCENES = 8192
PAIRINGS = 100  # with other images, for the hue difference that chance would give


@dataclass(frozen=True)
class Reference:
    """Relative frequencies over the objects of the data; `objects` is how many were counted, None for exact ones."""

    hues: np.ndarray  # (HUE_BINS,) of equal width from 0 degrees
    positions: np.ndarray  # (ROWS * COLUMNS,) of centroids on a grid, row by row
    classes: np.ndarray  # (classes,)
    objects: int | None = None


@dataclass(frozen=True)
class Coherence:
    """Every figure but `two_objects` and `coherence` is taken over the images with exactly two objects.

    Without such an image the agreements are 0, the hue difference 90 and the distances 1.
    """

    coherence: float  # two_objects * hue_agreement * shape agreement above chance * (1 - d) for each distance, 0 to 1
    two_objects: float  # share of images with exactly two objects, both clear
    hue_agreement: float  # 1 - hue_difference / its mean between objects of different images of one class; 0 is chance
    hue_difference: float  # mean angle between the hues of an image's objects, degrees
    shape_agreement: float  # share of images whose objects have the same class; 1 / classes is chance
    hue_distance: float  # of the hue histogram to the data's, 0 (as real images) to 1
    position_distance: float
    class_distance: float
    label_agreement: float | None = None  # share of images both of whose objects have the class of the label

    def to_dict(self) -> dict[str, float]:
        """The figures by name, without those that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def coherence(images: np.ndarray, labels: np.ndarray | None = None, reference: Reference | None = None) -> Coherence:
    """Score images, uint8 (N, R, R, 3), that should look like `shapes`; `labels` (N,): the classes asked for.

    `reference` replaces the histograms of the data set. Raises UserError for images of another form, or labels that
    are not one per image.
    """
    if labels is not None and np.shape(labels) != (len(images),):
        raise UserError(f"coherence: {len(images)} images need as many labels, got {np.shape(labels)}")
    reference = data_reference() if reference is None else reference
    chosen, pairs = clear_pairs(find_objects(images))
    two_objects = len(chosen) / len(images)
    if not len(chosen):
        return Coherence(0.0, 0.0, 0.0, 90.0, 0.0, 1.0, 1.0, 1.0, None if labels is None else 0.0)
    hues, shapes = pairs.hue.reshape(-1, 2), pairs.shape.reshape(-1, 2)
    wanted = shapes[:, 0] if labels is None else np.asarray(labels)[chosen]
    difference = float(_angle(*hues.T).mean())
    expected = _difference_by_chance(hues, wanted)
    hue_agreement = 1 - difference / expected if expected > 1 else 0.0  # one hue only: nothing to agree about
    shape_agreement = float((shapes[:, 0] == shapes[:, 1]).mean())
    distances = [
        _distance(_hue_counts(pairs.hue), reference.hues, len(chosen), reference.objects),
        _distance(_position_counts(pairs.centre), reference.positions, len(pairs.hue), reference.objects),
        _distance(_class_counts(pairs.shape), reference.classes, len(chosen), reference.objects),
    ]
    above_chance = max(0.0, (shape_agreement - 1 / len(CLASSES)) / (1 - 1 / len(CLASSES)))
    return Coherence(
        float(two_objects * max(0.0, hue_agreement) * above_chance * np.prod([1 - distance for distance in distances])),
        two_objects,
        hue_agreement,
        difference,
        shape_agreement,
        *distances,
        label_agreement=None if labels is None else float((shapes == wanted[:, None]).all(1).mean()),
    )


def clear_pairs(objects: Objects) -> tuple[np.ndarray, Objects]:
    """The images with exactly two objects, both clear: their numbers (P,) and their objects (2P): left, right, left…"""
    clear = (objects.area >= AREAS[0]) & (objects.area <= AREAS[1]) & (objects.scores.max(1, initial=0) >= CLEAR)
    image, counts = np.unique(objects.image, return_counts=True)
    clear_counts = np.bincount(objects.image, weights=clear, minlength=1)[image]
    chosen = image[(counts == 2) & (clear_counts == 2)]
    return chosen, objects[np.isin(objects.image, chosen)]


@lru_cache
def data_reference() -> Reference:
    """The data's histograms: hue and class are uniform by definition, positions are counted over many scenes."""
    centres = scenes(range(REFERENCE_SCENES)).centres.reshape(-1, 2)
    positions = _position_counts(centres) / len(centres)
    return Reference(np.full(HUE_BINS, 1 / HUE_BINS), positions, np.full(len(CLASSES), 1 / len(CLASSES)), len(centres))


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The angle between hues, 0 to 180 degrees."""
    return np.abs((a - b + 180) % 360 - 180)


def _difference_by_chance(hues: np.ndarray, classes: np.ndarray) -> float:
    """Mean angle between the left object of one image and the right one of another image of the same class.

    Within a class, because a generator that ties the hue to the label agrees without looking; and from the images
    themselves, because few hues agree by chance. Zero when no class has two images.
    """
    total, count = 0.0, 0
    for label in np.unique(classes):
        left, right = hues[classes == label].T
        shifts = np.unique(np.linspace(1, len(left) - 1, PAIRINGS).astype(int)) if len(left) > 1 else []
        for shift in shifts:
            total += _angle(left, np.roll(right, shift)).mean() * len(left) / len(shifts)
        count += len(left) if len(left) > 1 else 0
    return float(total / count) if count else 0.0


def _hue_counts(hues: np.ndarray) -> np.ndarray:
    return np.bincount((hues * (HUE_BINS / 360)).astype(int) % HUE_BINS, minlength=HUE_BINS)


def _position_counts(centres: np.ndarray) -> np.ndarray:
    column, row = np.minimum((centres * (COLUMNS, ROWS)).astype(int), (COLUMNS - 1, ROWS - 1)).T
    return np.bincount(row * COLUMNS + column, minlength=ROWS * COLUMNS)


def _class_counts(shapes: np.ndarray) -> np.ndarray:
    return np.bincount(shapes, minlength=len(CLASSES))


def _distance(counts: np.ndarray, frequencies: np.ndarray, drawn: int, reference_drawn: int | None) -> float:
    """Total variation distance of a histogram to the data's, less what as many draws from the data would show.

    Sampling alone moves each bin by sqrt(2 p (1 - p) / (pi n)) on average; the rest is scaled so that 1 stays 1.
    """
    variation = 0.5 * float(np.abs(counts / counts.sum() - frequencies).sum())
    variance = frequencies * (1 - frequencies) * (1 / drawn + (1 / reference_drawn if reference_drawn else 0))
    by_chance = 0.5 * float(np.sqrt(2 * variance / np.pi).sum())
    return (variation - by_chance) / (1 - by_chance) if variation > by_chance else 0.0

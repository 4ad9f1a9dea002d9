"""The paper's claim on `shapes`: do points on one object attend to the other one, far away?"""

from dataclasses import dataclass

import numpy as np

from sagan.attention.base import cells_of
from sagan.data.rendering import SHAPES, pixel_centres
from sagan.inspection.maps import Recording

FINE = 256  # pixels on a side of the drawing from which a shape's area is taken


@dataclass(frozen=True)
class PartnerMass:
    """Means over heads and over the points that lie on one of two objects.

    Attention that is the same for every point also lies far above chance when it lies on an object, but equally on
    `own`: only `mass` above `own` says that points look for the other object.
    """

    mass: float  # share of a point's attention that falls on the other object
    own: float  # … on the object that the point lies on
    chance: float  # the other object's share of the area: what uniform attention puts there
    points: int


def partner_mass(recording: Recording, masks: np.ndarray) -> dict[str, PartnerMass]:
    """For every map of softmax rows; empty where no query point lies on an object.

    `masks` (B, 2, R, R) bool: the pixels of both objects of each image, none where there are not two. The weight of a
    key counts as spread evenly over its pixels.
    """
    resolution = masks.shape[-1]
    row, column = cells_of(recording.points, resolution, resolution).numpy().transpose(2, 0, 1)  # (B, k)
    image = np.arange(len(masks))[:, None]
    on = masks[image, :, row, column]  # (B, k, 2)
    image, point, own = np.nonzero(on)
    if not len(image):
        return {}
    measured = {}
    for name, found in recording.maps.items():
        if found.kind == "softmax row":
            weights = found.weights.double().numpy()[image, :, point]  # (Q, heads, H', W')
            covers = [_cover(masks[image, side], weights.shape[2:])[:, None] for side in (1 - own, own)]
            mass, own_mass = (float((weights * cover).sum((2, 3)).mean()) for cover in covers)
            measured[name] = PartnerMass(mass, own_mass, float(covers[0].mean()), len(image))
    return measured


def object_mask(shape: int, centre: np.ndarray, area: float, resolution: int) -> np.ndarray:
    """The pixels (R, R) bool of an object of `shapes`; centroid (x, y) and area are fractions of the image."""
    distance = list(SHAPES.values())[shape]
    fine = 2.5 * (pixel_centres(FINE) - 0.5)  # a shape of radius 1 fits in
    unit_area = (distance(fine[None, :], fine[:, None], np.ones(1)) <= 0).mean() * 2.5**2
    x, y = pixel_centres(resolution) - centre[0], pixel_centres(resolution) - centre[1]
    return distance(x[None, :], y[:, None], np.sqrt([area / unit_area])) <= 0


def _cover(masks: np.ndarray, keys: tuple[int, ...]) -> np.ndarray:
    """Share of each key's pixels that a mask covers: (Q, R, R) -> (Q, H', W')."""
    height, width = (n // m for n, m in zip(masks.shape[1:], keys, strict=True))
    return masks.reshape(len(masks), keys[0], height, keys[1], width).mean((2, 4))

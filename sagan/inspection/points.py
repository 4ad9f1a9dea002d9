"""Where to look: query points as fractions in [0, 1) of height and width, so that one choice serves every resolution.

The centre of pixel (r, c) of an H×W image is ((r + 0.5)/H, (c + 0.5)/W); `sagan.attention.base.cells_of` is the way
back, exact at every size. Points are float64 tensors, as `record_attention` takes them.
"""

import numpy as np
import torch
from torch import Tensor

from sagan.errors import UserError
from sagan.randomness import numpy_generator

FINEST = 64  # larger images are read at every second, third … pixel only
COLOUR = 0.7  # how far apart black and one full channel are, in image sides
FLOOR = 0.05  # weight of a pixel that does not stand out at all; the one that stands out most weighs 1
STARTS, ROUNDS = 6, 10  # of k-means


def pixel_points(pixels: Tensor, height: int, width: int) -> Tensor:
    """Fractions (…, 2) of the centres of pixels (…, 2), (row, column). UserError for one outside the image."""
    size = torch.tensor([height, width])
    outside = ((pixels < 0) | (pixels >= size)).any(-1)
    if outside.any():
        row, column = pixels[outside][0].tolist()
        raise UserError(f"point {row},{column} lies outside the image of {height} rows and {width} columns")
    return (pixels.double() + 0.5) / size


def grid_points(k: int) -> Tensor:
    """k points (k, 2) spread evenly, row by row; the lower rows hold one more where k does not divide."""
    rows = round(_checked(k) ** 0.5)
    counts = [(k + i) // rows for i in range(rows)]
    points = [((i + 0.5) / rows, (j + 0.5) / n) for i, n in enumerate(counts) for j in range(n)]
    return torch.tensor(points, dtype=torch.float64)


def random_points(k: int, seed: int = 0) -> Tensor:
    """k points (k, 2), uniform, from `seed` alone."""
    return torch.from_numpy(numpy_generator(seed, "attention points").random((_checked(k), 2)))


def salient_points(images: np.ndarray, k: int, seed: int = 0) -> Tensor:
    """A useful choice for each image: far apart and on what stands out, (B, k, 2), ordered from left to right.

    k-means over the pixels of each uint8 image (B, H, W, 3), by position and colour, a pixel weighing more the farther
    its colour lies from the image's median; the best of a few starts drawn from `seed`; of each cluster the pixel
    nearest its centre. Depends on the image, k and seed alone, not on the batch.
    """
    height, width = images.shape[1:3]
    step = -(-max(height, width) // FINEST)
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    pixels = np.stack([rows.ravel(), columns.ravel()], axis=1)  # (P, 2)
    if _checked(k) > len(pixels):
        raise UserError(f"{k} points asked for, an image of {height}x{width} has room for {len(pixels)}")
    places = (pixels + 0.5) / (height, width)  # (P, 2)
    chosen = []
    for image in images:
        colours = image[pixels[:, 0], pixels[:, 1]] / 255  # (P, 3)
        contrast = np.square(colours - np.median(colours, axis=0)).sum(axis=1)
        weights = FLOOR + (1 - FLOOR) * contrast / max(contrast.max(), 1e-9)
        features = np.concatenate([places, COLOUR * colours], axis=1)  # (P, 5)
        starts = numpy_generator(seed, "salient points").random((STARTS, k))
        clusterings = [_k_means(features, weights, draws) for draws in starts]
        _, centres = min(clusterings, key=lambda clustering: clustering[0])
        found = pixels[_nearest_rows(features, centres)]
        chosen.append(found[np.lexsort((found[:, 0], found[:, 1]))])
    return pixel_points(torch.from_numpy(np.array(chosen)), height, width)


def _k_means(features: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted k-means (Lloyd) over rows (P, F): its cost, and the centres (k, F)."""
    centres = _seeded_centres(features, weights, draws)
    for _ in range(ROUNDS):
        nearest = _squared_distances(features, centres).argmin(axis=1)
        share = weights[:, None] * (nearest[:, None] == np.arange(len(centres)))  # (P, k)
        mass = share.sum(axis=0)[:, None]
        centres = np.where(mass > 0, share.T @ features / np.maximum(mass, 1e-9), centres)  # an empty one stays
    return float((weights * _squared_distances(features, centres).min(axis=1)).sum()), centres


def _nearest_rows(features: np.ndarray, centres: np.ndarray) -> list[int]:
    """The row nearest each centre, all different."""
    distances = _squared_distances(features, centres)  # (P, k)
    rows: list[int] = []
    for j in range(len(centres)):
        distances[rows, j] = np.inf
        rows.append(int(distances[:, j].argmin()))
    return rows


def _seeded_centres(features: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """k-means++ (Arthur & Vassilvitskii 2007): each centre drawn by weight × squared distance to the ones before."""
    chances, centres = weights, np.empty((0, features.shape[1]))
    for draw in draws:
        total = chances.cumsum()
        row = min(int(np.searchsorted(total, draw * total[-1], side="right")), len(features) - 1)
        centres = np.vstack([centres, features[row]])
        chances = weights * _squared_distances(features, centres).min(axis=1)
    return centres


def _squared_distances(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(P, F), (k, F) -> (P, k)."""
    squares = (features**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.maximum(squares - 2 * features @ centres.T, 0)


def _checked(k: int) -> int:
    if k < 1:
        raise UserError(f"{k} query points asked for, at least 1 is needed")
    return k

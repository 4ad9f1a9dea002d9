"""Antialiased drawing of flat shapes on an array, from signed distances (Quilez, "2D distance functions").

Lengths are fractions of the image side; x points right, y down. Every shape has its centroid at the origin, a half
width of at most its radius, and about the same area. Only + - * / min max abs sqrt are used, which IEEE 754 rounds
the same everywhere: the bytes do not depend on the machine.
"""

from collections.abc import Callable

import numpy as np

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


def pixel_centres(resolution: int) -> np.ndarray:
    """(R,) float32 coordinates of the pixel centres on one axis, in (0, 1)."""
    return (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution)


def coverage(distance: np.ndarray, resolution: int, softness: float = 1.0) -> np.ndarray:
    """How much of a pixel a shape covers, in [0, 1]: a linear ramp `softness` pixels wide across the outline."""
    return np.clip(np.float32(0.5) - distance * np.float32(resolution / softness), 0, 1)


def hue_to_rgb(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB: hues (N,) in degrees to colours (N, 3) float32 in [0, 1]."""
    place = (np.asarray(hue, np.float32)[:, None] / 60 + np.array([5, 3, 1], np.float32)) % 6
    share = np.clip(np.minimum(place, 4 - place), 0, 1)
    return np.float32(value) * (1 - np.float32(saturation) * share)


def rgb_to_hue(rgb: np.ndarray) -> np.ndarray:
    """The HSV hue of colours (N, 3), (N,) in [0, 360) degrees; 0 for a grey."""
    red, green, blue = rgb.T
    top, chroma = rgb.max(1), np.ptp(rgb, axis=1)
    chroma = np.where(chroma > 0, chroma, 1)
    sextant = np.where(
        top == red,
        (green - blue) / chroma,
        np.where(top == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return (60 * sextant) % 360

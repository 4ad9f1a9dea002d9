"""What the attention figure shows of each kind of map: a block of tiles, one row an image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sagan.attention import KINDS, AttentionMap
from sagan.inspection import tiles
from sagan.inspection.maps import Recording

MOST_COLUMNS = 8  # heads that are shown of maps that are the same for every point


@dataclass(frozen=True)
class Block:
    """Columns beside the images. `tile(image, column, large)`: pixels (side, side, 3) from the enlarged image."""

    heading: str
    labels: tuple[str, ...]  # over each column; "" for a point's own, numbered dot
    tile: Callable[[int, int, np.ndarray], np.ndarray]
    corner: Callable[[int, int], str]  # said in the corner of a tile
    note: str
    boxes: np.ndarray | None = None  # (B, columns, 4), drawn on the images

    @property
    def of_points(self) -> bool:
        return self.labels[0] == ""


def blocks_of(recording: Recording, smooth: bool = False) -> list[Block]:
    """The blocks of every map of a recording; per-query maps take one for each head."""
    blocks = []
    for name, found in recording.maps.items():
        gamma = [f"gamma {recording.gamma[name]:.3g}"] if name in recording.gamma else []
        kind = KINDS[found.kind]
        make = _of_points if kind.per_query and kind.spatial else _point_bars if kind.per_query else _of_all_points
        blocks += make(name, found, gamma, recording, smooth)
    return blocks


SHARES = (
    "In the corner of a map: its largest weight; 1x is uniform attention. Full colour is that weight,\n"
    f"or {tiles.FULL}x where it is smaller: so uniform attention is flat, and its noise stays faint."
)
AMOUNTS = "In the corner of a map of weights: its largest weight, in full colour; orange is positive, blue negative."
GATES = "Gates and responsibilities: full colour is 1; in the corner the least and the largest."
BARS = "Bars: from 0 to the number in the corner; channels stand in the order of their means over the images."
BOXES = "Boxes: what each one holds, enlarged; their outlines are drawn on the image."
GRID = "Dots: where each cell of the map reads its input."


def _of_points(name: str, found: AttentionMap, gamma: list[str], recording: Recording, smooth: bool) -> list[Block]:
    """A tile for each query point: the image under its map."""
    weights, size = found.weights.numpy(), recording.resolution[name]
    heads, points, keys = weights.shape[1], weights.shape[2], weights.shape[3:]
    share = found.kind == "softmax row"

    def block(head: int) -> Block:
        def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
            return _under_map(large, weights[image, head, column], size, share, smooth, tiles.colour_of(column))

        def corner(image: int, column: int) -> str:
            one = weights[image, head, column]
            return _times(one.max() * one.size) if share else f"{np.abs(one).max():.2g}"

        which = [f"head {head + 1} of {heads}"] if heads > 1 else []
        kind = [] if share else [found.kind]
        heading = "    ".join([name, *kind, *which, *gamma, f"{keys[0]}x{keys[1]} keys"])
        return Block(heading, ("",) * points, tile, corner, SHARES if share else AMOUNTS)

    return [block(head) for head in range(heads)]


def _point_bars(name: str, found: AttentionMap, gamma: list[str], recording: Recording, smooth: bool) -> list[Block]:
    """Bars for each query point: its responsibilities."""
    values = found.weights.numpy()[:, 0, :, 0]  # (B, k, W')

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        one = values[image, column]
        return tiles.bars(one, len(large), tiles.colour_of(column), one.max())

    heading = "    ".join([name, found.kind, *gamma, f"of {values.shape[2]}"])
    return [Block(heading, ("",) * values.shape[1], tile, lambda i, c: f"{values[i, c].max():.2g}", BARS)]


def _of_all_points(name: str, found: AttentionMap, gamma: list[str], recording: Recording, smooth: bool) -> list[Block]:
    """What is the same for every query point: tiles for the heads, bases, kernels or boxes that differ most."""
    maps = found.weights.numpy()[:, :, 0]  # (B, heads, H', W')
    size, heading = recording.resolution.get(name, (1, 1)), "    ".join([name, found.kind, *gamma])
    if found.kind == "boxes":
        return [_boxes(heading, maps[:, :MOST_COLUMNS, 0], recording)]
    if found.kind == "sampling grid":
        return [Block(heading, ("grid",), lambda i, c, x: tiles.with_lattice(x, maps[i], size), lambda i, c: "", GRID)]
    if found.kind == "channel rows":
        one = Block(heading, ("channels",), lambda i, c, x: tiles.matrix(maps[i, 0], len(x), tiles.colour_of(0)),
                    lambda i, c: f"{maps[i, 0].max():.2g}", AMOUNTS)  # fmt: skip
        return [one]
    shown = np.sort(np.argsort(-maps.std((0, 2, 3)), kind="stable")[:MOST_COLUMNS])
    labels = tuple(f"{_noun(found.kind)} {head + 1}" if maps.shape[1] > 1 else _noun(found.kind) for head in shown)
    if not KINDS[found.kind].spatial:
        return [_bars(heading, labels, maps[:, shown, 0])]

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        one = maps[image, shown[column]]
        if found.kind in ("gather map", "saliency"):
            return _under_map(large, one, size, found.kind == "gather map", smooth, tiles.colour_of(column))
        alpha = tiles.spread(np.clip(one, 0, 1), size, len(large), smooth)
        return tiles.overlay(large, alpha, tiles.colour_of(column))

    def corner(image: int, column: int) -> str:
        one = maps[image, shown[column]]
        return _times(one.max() * one.size) if found.kind == "gather map" else f"{one.min():.2f}..{one.max():.2f}"

    return [Block(heading, labels, tile, corner, SHARES if found.kind == "gather map" else GATES)]


def _bars(heading: str, labels: tuple[str, ...], values: np.ndarray) -> Block:
    """Values (B, columns, W') as bars."""
    order = np.argsort(-values.mean((0, 1)), kind="stable")
    most = max(float(values.max()), 1e-12)

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        return tiles.bars(values[image, column, order], len(large), tiles.colour_of(column), most)

    return Block(f"{heading}    of {values.shape[2]}", labels, tile, lambda i, c: f"{most:.2g}", BARS)


def _boxes(heading: str, boxes: np.ndarray, recording: Recording) -> Block:
    """Boxes (B, columns, 4)."""

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        inside = tiles.crop(recording.images[image], boxes[image, column], len(large))
        return tiles.with_box(inside, np.array([0, 0, 1, 1]), tiles.colour_of(column))

    labels = tuple(f"box {j + 1}" for j in range(boxes.shape[1]))
    return Block(heading, labels, tile, lambda i, c: "", BOXES, boxes)


def _under_map(
    large: np.ndarray, weights: np.ndarray, size: tuple[int, int], share: bool, smooth: bool,
    colour: tuple[int, int, int],
) -> np.ndarray:  # fmt: skip
    """The image under one map (H', W')."""
    side = len(large)
    if share:
        return tiles.overlay(large, tiles.opacity(weights, size, side, smooth), colour)
    shown = weights / max(np.abs(weights).max(), 1e-12)
    if weights.min() >= 0:
        return tiles.overlay(large, tiles.spread(shown, size, side, smooth), colour)
    positive, negative = (tiles.spread(np.clip(sign * shown, 0, 1), size, side, smooth) for sign in (1, -1))
    return tiles.signed_overlay(large, positive - negative)


def _noun(kind: str) -> str:
    return {"basis map": "basis", "gather map": "descriptor", "kernel choice": "kernel"}.get(kind, kind)


def _times(multiple: float) -> str:
    return f"{multiple:.0f}x" if multiple >= 10 else f"{multiple:.1f}x"

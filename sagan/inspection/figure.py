"""The attention figure of the paper (arXiv:1805.08318, figs. 1 and 5), drawn with NumPy and Pillow.

One row per image: the image with its query points as colored dots, then one tile per point, the darkened image with
the point's attention map in the color of its dot. One block per module and head; maps that are the same for every point
(gates, bases, boxes) have a block of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan.attention import KINDS, AttentionMap
from sagan.inspection.record import Recording
from sagan.utils.errors import UserError

COLORS = (
    (255, 77, 77), (72, 187, 255), (255, 214, 10), (90, 230, 120),
    (224, 122, 255), (255, 150, 50), (0, 222, 205), (255, 150, 205),
)  # fmt: skip
SIGNS = (COLORS[1], COLORS[5])  # of negative and positive weights
PAPER, INK, FAINT_PAPER = (255, 255, 255), (0, 0, 0), (243, 244, 246)
FULL = 4  # multiples of uniform attention from which a peak is full color


def color_of(j: int) -> tuple[int, int, int]:
    """Of point, head or box j."""
    return COLORS[j % len(COLORS)]


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 (R, R, 3) as float32 (side, side, 3); R divides side."""
    scale = side // image.shape[0]
    return image.repeat(scale, 0).repeat(scale, 1).astype(np.float32)


def opacity(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """Opacity of each pixel of a tile under a map (H', W') of weights that sum to 1, of a query map of `size`."""
    return spread(weights / max(weights.max(), FULL / weights.size), size, side, smooth)


def spread(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """A map (H', W') in [0, 1] of a query map of `size` -> (side, side).

    A pooled key covers the query cells it was pooled from; an odd last row or column, which no key covers, stays empty.
    """
    if smooth:
        blended = Image.fromarray(weights.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(blended), 0, 1)
    cells = [np.arange(side) * n // side for n in size]
    rows, columns = (np.minimum(c // (n // m), m) for c, n, m in zip(cells, size, weights.shape, strict=True))
    return np.pad(weights, ((0, 1), (0, 1)))[rows[:, None], columns]


def overlay(image: np.ndarray, alpha: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The image (side, side, 3), darkened and gray, under a color of opacity `alpha` (side, side)."""
    gray = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # (side, side, 1), ITU-R BT.601
    dark, lit = 16 + 0.35 * gray, np.array(color) * (0.7 + 0.3 * gray / 255)
    return dark + alpha[..., None] * (lit - dark)


def signed_overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same for weights (side, side) in [-1, 1], with a color for each sign."""
    negative = overlay(image, np.clip(-weights, 0, 1), SIGNS[0])
    positive = overlay(image, np.clip(weights, 0, 1), SIGNS[1])
    return np.where(weights[..., None] < 0, negative, positive)


def with_dot(tile: np.ndarray, point: list[float], color: tuple[int, int, int], radius: float) -> np.ndarray:
    """The tile with a dot in a white and a black ring, at fractions (row, column) of the tile."""
    height, width = tile.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y + 0.5 - point[0] * height, x + 0.5 - point[1] * width)
    for reach, ring in ((radius + 2.2, INK), (radius + 1.4, PAPER), (radius, color)):
        cover = np.clip(reach - distance + 0.5, 0, 1)[..., None]
        tile = tile + cover * (np.array(ring) - tile)
    return tile


def with_box(tile: np.ndarray, box: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The tile with the outline of a box: top, left, bottom, right as fractions."""
    side = len(tile)
    thick = max(2, side // 64)
    top, left, bottom, right = (np.clip(np.rint(box * side), 0, side)).astype(int)
    tile = tile.copy()
    tile[top:bottom, left:right][:thick] = tile[top:bottom, left:right][-thick:] = color
    tile[top:bottom, left:right][:, :thick] = tile[top:bottom, left:right][:, -thick:] = color
    return tile


def crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """The content of a box of an image (R, R, 3), enlarged to (side, side, 3) without interpolation."""
    rows, columns = (
        np.clip(np.floor((a + (np.arange(side) + 0.5) / side * (b - a)) * len(image)), 0, len(image) - 1).astype(int)
        for a, b in ((box[0], box[2]), (box[1], box[3]))
    )
    return image[rows[:, None], columns].astype(np.float32)


def bars(values: np.ndarray, side: int, color: tuple[int, int, int], most: float) -> np.ndarray:
    """Values (W',) from 0 to `most` as bars, at most one per pixel (further values are averaged)."""
    tile = np.full((side, side, 3), FAINT_PAPER, np.float32)
    parts = np.array_split(values, side) if len(values) > side else [values[i : i + 1] for i in range(len(values))]
    edges = np.linspace(0, side, len(parts) + 1).round().astype(int)
    for part, left, right in zip(parts, edges[:-1], edges[1:], strict=True):
        height = round(side * float(np.clip(part.mean() / most, 0, 1)))
        tile[side - height :, left : max(right - (right - left > 3), left + 1)] = color
    return tile


def matrix(values: np.ndarray, side: int, color: tuple[int, int, int]) -> np.ndarray:
    """A matrix, from 0 to its largest value, as cells (side, side, 3)."""
    shown = values / max(values.max(), 1e-12)
    rows, columns = (np.arange(side) * n // side for n in shown.shape)
    alpha = shown[rows[:, None], columns][..., None]
    return FAINT_PAPER + alpha.astype(np.float32) * (np.array(color, np.float32) - FAINT_PAPER)


def with_lattice(image: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (side, side, 3) with a dot where each cell reads: `places` (2, H, W), row and column in cells."""
    side = len(image)
    tile = overlay(image, np.zeros((side, side)), PAPER)
    at = [np.rint((p + 0.5) * side / n - 0.5).astype(int).ravel() for p, n in zip(places, size, strict=True)]
    inside = (at[0] >= 0) & (at[0] < side - 1) & (at[1] >= 0) & (at[1] < side - 1)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tile[at[0][inside] + down, at[1][inside] + right] = COLORS[2]
    return tile


MOST_COLUMNS = 8  # heads of a map that is the same for every point


@dataclass(frozen=True)
class Block:
    """Columns beside the images. `tile(image, column, large)`: pixels (side, side, 3) from the enlarged image."""

    heading: str
    labels: tuple[str, ...]  # over each column; "" for a point's own, numbered dot
    tile: Callable[[int, int, np.ndarray], np.ndarray]
    corner: Callable[[int, int], str]  # text in the corner of a tile
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
    "In the corner of a map: its largest weight; 1x is uniform attention. Full color is that weight,\n"
    f"or {FULL}x where it is smaller: so uniform attention is flat, and its noise stays faint."
)
AMOUNTS = "In the corner of a map of weights: its largest weight, in full color; orange is positive, blue negative."
GATES = "Gates and responsibilities: full color is 1; in the corner the least and the largest."
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
            return _under_map(large, weights[image, head, column], size, share, smooth, color_of(column))

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
        return bars(one, len(large), color_of(column), one.max())

    heading = "    ".join([name, found.kind, *gamma, f"of {values.shape[2]}"])
    return [Block(heading, ("",) * values.shape[1], tile, lambda i, c: f"{values[i, c].max():.2g}", BARS)]


def _of_all_points(name: str, found: AttentionMap, gamma: list[str], recording: Recording, smooth: bool) -> list[Block]:
    """A map that is the same for every point: a tile for each of the heads, bases, kernels or boxes that vary most."""
    maps = found.weights.numpy()[:, :, 0]  # (B, heads, H', W')
    size, heading = recording.resolution.get(name, (1, 1)), "    ".join([name, found.kind, *gamma])
    if found.kind == "boxes":
        return [_boxes(heading, maps[:, :MOST_COLUMNS, 0], recording)]
    if found.kind == "sampling grid":
        return [Block(heading, ("grid",), lambda i, c, x: with_lattice(x, maps[i], size), lambda i, c: "", GRID)]
    if found.kind == "channel rows":
        one = Block(heading, ("channels",), lambda i, c, x: matrix(maps[i, 0], len(x), color_of(0)),
                    lambda i, c: f"{maps[i, 0].max():.2g}", AMOUNTS)  # fmt: skip
        return [one]
    shown = np.sort(np.argsort(-maps.std((0, 2, 3)), kind="stable")[:MOST_COLUMNS])
    labels = tuple(f"{_noun(found.kind)} {head + 1}" if maps.shape[1] > 1 else _noun(found.kind) for head in shown)
    if not KINDS[found.kind].spatial:
        return [_bars(heading, labels, maps[:, shown, 0])]

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        one = maps[image, shown[column]]
        if found.kind in ("gather map", "saliency"):
            return _under_map(large, one, size, found.kind == "gather map", smooth, color_of(column))
        alpha = spread(np.clip(one, 0, 1), size, len(large), smooth)
        return overlay(large, alpha, color_of(column))

    def corner(image: int, column: int) -> str:
        one = maps[image, shown[column]]
        return _times(one.max() * one.size) if found.kind == "gather map" else f"{one.min():.2f}..{one.max():.2f}"

    return [Block(heading, labels, tile, corner, SHARES if found.kind == "gather map" else GATES)]


def _bars(heading: str, labels: tuple[str, ...], values: np.ndarray) -> Block:
    """Values (B, columns, W') as bars."""
    order = np.argsort(-values.mean((0, 1)), kind="stable")
    most = max(float(values.max()), 1e-12)

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        return bars(values[image, column, order], len(large), color_of(column), most)

    return Block(f"{heading}    of {values.shape[2]}", labels, tile, lambda i, c: f"{most:.2g}", BARS)


def _boxes(heading: str, boxes: np.ndarray, recording: Recording) -> Block:
    """Boxes (B, columns, 4)."""

    def tile(image: int, column: int, large: np.ndarray) -> np.ndarray:
        inside = crop(recording.images[image], boxes[image, column], len(large))
        return with_box(inside, np.array([0, 0, 1, 1]), color_of(column))

    labels = tuple(f"box {j + 1}" for j in range(boxes.shape[1]))
    return Block(heading, labels, tile, lambda i, c: "", BOXES, boxes)


def _under_map(
    large: np.ndarray, weights: np.ndarray, size: tuple[int, int], share: bool, smooth: bool,
    color: tuple[int, int, int],
) -> np.ndarray:  # fmt: skip
    """The image under one map (H', W')."""
    side = len(large)
    if share:
        return overlay(large, opacity(weights, size, side, smooth), color)
    shown = weights / max(np.abs(weights).max(), 1e-12)
    if weights.min() >= 0:
        return overlay(large, spread(shown, size, side, smooth), color)
    positive, negative = (spread(np.clip(sign * shown, 0, 1), size, side, smooth) for sign in (1, -1))
    return signed_overlay(large, positive - negative)


def _noun(kind: str) -> str:
    return {"basis map": "basis", "gather map": "descriptor", "kernel choice": "kernel"}.get(kind, kind)


def _times(multiple: float) -> str:
    return f"{multiple:.0f}x" if multiple >= 10 else f"{multiple:.1f}x"


TILE, GAP, MARGIN, LABELS, NARROWEST = 128, 6, 16, 82, 540  # pixels, at the smallest tile
HEADING, HEADS, BETWEEN, FOOTER, LINE = 26, 22, 14, 12, 16
TEXT, FAINT = (32, 33, 36), (105, 109, 115)
LONGEST_LABEL = 12  # characters


@dataclass(frozen=True)
class Layout:
    """Positions and sizes in pixels of the figure. Text and gaps scale with the tiles."""

    images: int
    columns: int
    resolution: int
    least: int = TILE

    @property
    def scale(self) -> int:
        return max(1, self.least // TILE)

    @property
    def side(self) -> int:
        """Of a tile: the smallest multiple of the resolution that has `least` pixels."""
        return self.resolution * -(-self.least // self.resolution)

    @property
    def pitch(self) -> int:
        return self.side + GAP * self.scale

    @property
    def block_height(self) -> int:
        return (HEADING + HEADS - GAP + BETWEEN) * self.scale + self.images * self.pitch

    def block(self, block: int) -> int:
        """y of the upper edge of a block."""
        return MARGIN * self.scale + block * self.block_height

    def tile(self, block: int, image: int, column: int) -> tuple[int, int]:
        """(y, x) of the upper left pixel of a tile; column 0 is the image, column j + 1 what point j attends to."""
        y = self.block(block) + (HEADING + HEADS) * self.scale + image * self.pitch
        return y, (MARGIN + LABELS) * self.scale + column * self.pitch

    def size(self, blocks: int, lines: int = 2) -> tuple[int, int]:
        """(height, width) of the whole figure, with so many lines of notes below."""
        width = (2 * MARGIN + LABELS - GAP) * self.scale + (self.columns + 1) * self.pitch
        return self.block(blocks) + (FOOTER + LINE * lines) * self.scale, max(width, NARROWEST * self.scale)


def attention_figure(recording: Recording, smooth: bool = False, tile: int = TILE) -> np.ndarray:
    """The figure as uint8 (H, W, 3), its images at least `tile` pixels wide. UserError when nothing was recorded."""
    if not recording.maps:
        raise UserError("nothing to draw: the network has no attention module")
    blocks = blocks_of(recording, smooth)
    columns = max(len(block.labels) for block in blocks)
    layout = Layout(len(recording.images), columns, recording.images.shape[1], tile)
    notes = [line for note in dict.fromkeys(block.note for block in blocks) for line in note.split("\n")]
    height, width = layout.size(len(blocks), len(notes))
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = Pen(canvas, layout.scale)
    for i, block in enumerate(blocks):
        pen.write((MARGIN * layout.scale, layout.block(i)), block.heading, 15, TEXT)
        _draw_labels(pen, layout, i, block, recording)
        for image in range(layout.images):
            _draw_row(pen, layout, i, image, block, recording)
    for i, line in enumerate(notes):
        pen.write((MARGIN * layout.scale, layout.block(len(blocks)) + LINE * layout.scale * i), line, 12, FAINT)
    return np.asarray(canvas)


@dataclass(frozen=True)
class Pen:
    """Writes and pastes on a canvas; `scale` enlarges text."""

    canvas: Image.Image
    scale: int

    def write(
        self, place: tuple[int, int], text: str, size: int, color: tuple[int, int, int], anchor: str = "la",
        outline: int = 0,
    ) -> None:  # fmt: skip
        draw = ImageDraw.Draw(self.canvas)
        outline *= self.scale
        draw.text(place, text, color, _font(size * self.scale), anchor, stroke_width=outline, stroke_fill=INK)

    def paste(self, tile: np.ndarray, y: int, x: int) -> None:
        self.canvas.paste(Image.fromarray(tile.round().astype(np.uint8)), (x, y))


def _draw_labels(pen: Pen, layout: Layout, i: int, block: Block, recording: Recording) -> None:
    """The label of each column above it; seed and class beside each row."""
    s = layout.scale
    for column, label in enumerate(["image", *block.labels]):
        y, x = layout.tile(i, 0, column)
        middle = x + layout.side // 2
        if label:
            pen.write((middle, y - 7 * s), label, 12, FAINT, "ms")
        else:
            dot = np.full((16 * s, 16 * s, 3), PAPER, np.float32)
            pen.paste(with_dot(dot, [0.5, 0.5], color_of(column - 1), 5 * s), y - 19 * s, middle - 18 * s)
            pen.write((middle + 2 * s, y - 7 * s), f"{column}", 12, FAINT, "ls")
    for image, (seed, label) in enumerate(zip(recording.seeds, recording.labels, strict=True)):
        y = layout.tile(i, image, 0)[0] + layout.side // 2
        pen.write((MARGIN * s, y - 2 * s), f"seed {seed}", 12, TEXT, "ls")
        if label >= 0:
            name = recording.class_names[label] if recording.class_names else f"class {label}"
            short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 2] + ".."
            pen.write((MARGIN * s, y + 14 * s), short, 12, FAINT, "ls")


def _draw_row(pen: Pen, layout: Layout, i: int, image: int, block: Block, recording: Recording) -> None:
    """The tiles of one image: itself with its dots or boxes, then one for each column."""
    side, s = layout.side, layout.scale
    large = enlarged(recording.images[image], side)
    points = recording.points[image].tolist() if block.of_points else []
    first = large
    for j, point in enumerate(points):
        first = with_dot(first, point, color_of(j), side / 22)
    for j, box in enumerate(block.boxes[image] if block.boxes is not None else []):
        first = with_box(first, box, color_of(j))
    pen.paste(first, *layout.tile(i, image, 0))
    for column in range(len(block.labels)):
        y, x = layout.tile(i, image, column + 1)
        tile = block.tile(image, column, large)
        if points:
            tile = with_dot(tile, points[column], color_of(column), side / 34)
        pen.paste(tile, y, x)
        corner = (x + side - 4 * s, y + side - 5 * s)
        pen.write(corner, block.corner(image, column), 11, PAPER, "rs", outline=1)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

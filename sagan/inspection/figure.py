"""The attention figure of the paper (Zhang et al., arXiv:1805.08318, figs. 1 and 5).

One row per image: the image with its query points as colored dots, then one tile per point with the darkened image and
the point's attention map in the color of its dot. One block per module and head. Maps that are the same for every point
(gates, bases, boxes) have their own block.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan.attention import KINDS, AttentionMap
from sagan.inspection.record import Recording

Color = tuple[int, int, int]
COLORS: tuple[Color, ...] = (
    (255, 77, 77), (72, 187, 255), (255, 214, 10), (90, 230, 120),
    (224, 122, 255), (255, 150, 50), (0, 222, 205), (255, 150, 205),
)  # fmt: skip
SIGNS = (COLORS[1], COLORS[5])  # of negative and positive weights
WHITE, BLACK, EMPTY = (255, 255, 255), (0, 0, 0), (243, 244, 246)
GATED = ("spatial gate", "basis map")  # kinds of maps in [0, 1]
FULL = 4  # multiples of uniform attention from which a peak is full color


def color_of(j: int) -> Color:
    """Color of point, head or box j."""
    return COLORS[j % len(COLORS)]


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 (R, R, 3) as float32 (side, side, 3). R divides side."""
    scale = side // image.shape[0]
    return image.repeat(scale, 0).repeat(scale, 1).astype(np.float32)


def opacity(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """Opacity (side, side) of a map (H', W') of weights that sum to 1, on a query map of `size`."""
    return spread(weights / max(weights.max(), FULL / weights.size), size, side, smooth)


def spread(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """Resize a map (H', W') in [0, 1] on a query map of `size` to (side, side).

    A pooled key covers the query cells it was pooled from. An odd last row or column, which no key covers, stays empty.
    """
    if smooth:
        resized = Image.fromarray(weights.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(resized), 0, 1)
    cells = [np.arange(side) * n // side for n in size]
    rows, columns = (np.minimum(c // (n // m), m) for c, n, m in zip(cells, size, weights.shape, strict=True))
    return np.pad(weights, ((0, 1), (0, 1)))[rows[:, None], columns]


def overlay(image: np.ndarray, alpha: np.ndarray, color: Color) -> np.ndarray:
    """The image (side, side, 3), darkened and gray, under a color of opacity `alpha` (side, side)."""
    gray = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # (side, side, 1), ITU-R BT.601
    dark, lit = 16 + 0.35 * gray, np.array(color) * (0.7 + 0.3 * gray / 255)
    return dark + alpha[..., None] * (lit - dark)


def with_dot(tile: np.ndarray, point: list[float], color: Color, radius: float) -> np.ndarray:
    """The tile with a dot in a white and a black ring, at fractions (row, column) of the tile."""
    height, width = tile.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y + 0.5 - point[0] * height, x + 0.5 - point[1] * width)
    for reach, ring in ((radius + 2.2, BLACK), (radius + 1.4, WHITE), (radius, color)):
        cover = np.clip(reach - distance + 0.5, 0, 1)[..., None]
        tile = tile + cover * (np.array(ring) - tile)
    return tile


def with_box(tile: np.ndarray, box: np.ndarray, color: Color) -> np.ndarray:
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


def bars(values: np.ndarray, side: int, color: Color, most: float) -> np.ndarray:
    """Bar chart of values (W',) from 0 to `most`, at most one bar per pixel (further values are averaged)."""
    tile = np.full((side, side, 3), EMPTY, np.float32)
    parts = np.array_split(values, min(side, len(values)))
    edges = np.linspace(0, side, len(parts) + 1).round().astype(int)
    for part, left, right in zip(parts, edges[:-1], edges[1:], strict=True):
        height = round(side * float(np.clip(part.mean() / most, 0, 1)))
        tile[side - height :, left : max(right - (right - left > 3), left + 1)] = color
    return tile


def matrix(values: np.ndarray, side: int, color: Color) -> np.ndarray:
    """A matrix, from 0 to its largest value, as cells (side, side, 3)."""
    rows, columns = (np.arange(side) * n // side for n in values.shape)
    alpha = (values / max(values.max(), 1e-12))[rows[:, None], columns][..., None]
    return EMPTY + alpha.astype(np.float32) * (np.array(color, np.float32) - EMPTY)


def lattice(image: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (side, side, 3) with a dot where each cell reads: `places` (2, H, W), row and column in cells."""
    side = len(image)
    tile = overlay(image, np.zeros((side, side)), WHITE)
    at = [np.rint((p + 0.5) * side / n - 0.5).astype(int).ravel() for p, n in zip(places, size, strict=True)]
    inside = (at[0] >= 0) & (at[0] < side - 1) & (at[1] >= 0) & (at[1] < side - 1)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tile[at[0][inside] + down, at[1][inside] + right] = COLORS[2]
    return tile


MAX_COLUMNS = 8  # heads of a map that is the same for every point
SHARES = (
    "In the corner of a map: its largest weight; 1x is uniform attention. Full color is that weight,\n"
    f"or {FULL}x where it is smaller: so uniform attention is flat, and its noise stays faint."
)
AMOUNTS = "In the corner of a map of weights: its largest weight, in full color; orange is positive, blue negative."
GATES = "Gates and responsibilities: full color is 1; in the corner the least and the largest."
BARS = "Bars: from 0 to the number in the corner; channels stand in the order of their means over the images."
BOXES = "Boxes: what each one holds, enlarged; their outlines are drawn on the image."
GRID = "Dots: where each cell of the map reads its input."
NOTES = {
    "softmax row": SHARES, "gather map": SHARES, "boxes": BOXES, "sampling grid": GRID, "responsibility": BARS,
    "channel gate": BARS, "kernel choice": BARS, "head gate": BARS, "saliency": GATES, "spatial gate": GATES,
    "basis map": GATES,
}  # fmt: skip
NOUNS = {"basis map": "basis", "gather map": "descriptor", "kernel choice": "kernel", "sampling grid": "grid",
         "channel rows": "channels", "boxes": "box"}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Columns of tiles beside the images: one head of a map per point, or the heads of a map for all points."""

    heading: str
    labels: tuple[str, ...]  # over each column; "" for a point's own, numbered dot
    kind: str
    values: np.ndarray  # (B, columns, H', W')
    size: tuple[int, int]  # of the query map

    @property
    def note(self) -> str:
        return NOTES.get(self.kind, AMOUNTS)

    def most(self, image: int, column: int) -> float:
        """Upper end of the bars: of the point, or of all images and columns."""
        return float(self.values[image, column].max()) if self.labels[0] == "" else max(float(self.values.max()), 1e-12)

    def tile(self, image: int, column: int, large: np.ndarray, smooth: bool = False) -> np.ndarray:
        """The pixels (side, side, 3) of a tile from the enlarged image."""
        side, color, values = len(large), color_of(column), self.values[image, column]
        if self.note == BARS:
            return bars(values[0], side, color, self.most(image, column))
        if self.note == SHARES:
            return overlay(large, opacity(values, self.size, side, smooth), color)
        if self.kind == "channel rows":
            return matrix(values, side, color)
        if self.kind == "sampling grid":
            return lattice(large, self.values[image], self.size)
        if self.kind == "boxes":
            return with_box(crop(large, values[0], side), np.array([0, 0, 1, 1]), color)
        scaled = values if self.kind in GATED else values / max(np.abs(values).max(), 1e-12)
        positive = spread(np.clip(scaled, 0, 1), self.size, side, smooth)
        if values.min() >= 0 or self.kind in GATED:
            return overlay(large, positive, color)
        signed = positive - spread(np.clip(-scaled, 0, 1), self.size, side, smooth)
        colors = [overlay(large, np.clip(sign * signed, 0, 1), SIGNS[sign > 0]) for sign in (-1, 1)]
        return np.where(signed[..., None] < 0, *colors)

    def corner(self, image: int, column: int) -> str:
        """Text in the corner of a tile."""
        values = self.values[image, column]
        if self.note == SHARES:
            multiple = values.max() * values.size
            return f"{multiple:.0f}x" if multiple >= 10 else f"{multiple:.1f}x"
        if self.note == GATES:
            return f"{values.min():.2f}..{values.max():.2f}"
        if self.note in (BOXES, GRID):
            return ""
        return f"{self.most(image, column) if self.note == BARS else np.abs(values).max():.2g}"


def blocks_of(recording: Recording) -> list[Block]:
    """The blocks of every map. Maps with one row per query point have a block for each head."""
    return [block for name, found in recording.maps.items() for block in _blocks(name, found, recording)]


def _blocks(name: str, found: AttentionMap, recording: Recording) -> list[Block]:
    kind, values, size = found.kind, found.weights.numpy(), recording.resolution[name]  # (B, heads, k, H', W')
    heads, points = values.shape[1:3]
    heading = [name, *([] if kind == "softmax row" else [kind])]
    gamma = [f"gamma {recording.gamma[name]:.3g}"] if name in recording.gamma else []
    if KINDS[kind].per_query:
        blocks = []
        for head in range(heads if KINDS[kind].spatial else 1):
            which = [f"head {head + 1} of {heads}"] if heads > 1 and KINDS[kind].spatial else []
            keys = f"{values.shape[3]}x{values.shape[4]} keys" if KINDS[kind].spatial else f"of {values.shape[4]}"
            text = "    ".join([*heading, *which, *gamma, keys])
            blocks.append(Block(text, ("",) * points, kind, values[:, head], size))
        return blocks
    values, noun, heading = values[:, :, 0], NOUNS.get(kind, kind), [*heading, *gamma]  # (B, heads, H', W')
    if kind in ("sampling grid", "channel rows"):
        return [Block("    ".join(heading), (noun,), kind, values, size)]
    if kind == "boxes":
        shown = np.arange(min(heads, MAX_COLUMNS))
    else:  # the heads that vary most
        shown = np.sort(np.argsort(-values.std((0, 2, 3)), kind="stable")[:MAX_COLUMNS])
    labels = tuple(f"{noun} {head + 1}" if heads > 1 or kind == "boxes" else noun for head in shown)
    values = values[:, shown]
    if NOTES[kind] == BARS:
        heading.append(f"of {values.shape[3]}")
        values = values[..., np.argsort(-values[:, :, 0].mean((0, 1)), kind="stable")]
    return [Block("    ".join(heading), labels, kind, values, size)]


TILE, GAP, MARGIN, LABELS, NARROWEST = 128, 6, 16, 82, 540  # pixels, at the smallest tile
HEADING, HEADS, BETWEEN, FOOTER, LINE = 26, 22, 14, 12, 16
TEXT, FAINT = (32, 33, 36), (105, 109, 115)
_font = lru_cache(ImageFont.load_default)
LONGEST_LABEL = 12  # characters


class Layout:
    """Positions and sizes of the figure in pixels. Text and gaps scale with the tiles."""

    def __init__(self, images: int, columns: int, resolution: int, least: int = TILE):
        self.images, self.columns = images, columns
        self.scale = max(1, least // TILE)
        self.side = resolution * -(-least // resolution)  # of a tile: a multiple of the resolution, at least `least`
        self.pitch = self.side + GAP * self.scale
        self.block_height = (HEADING + HEADS - GAP + BETWEEN) * self.scale + images * self.pitch

    def block(self, block: int) -> int:
        """y of the upper edge of a block."""
        return MARGIN * self.scale + block * self.block_height

    def tile(self, block: int, image: int, column: int) -> tuple[int, int]:
        """(y, x) of the upper left pixel of a tile. Column 0 is the image, column j + 1 the map of point j."""
        y = self.block(block) + (HEADING + HEADS) * self.scale + image * self.pitch
        return y, (MARGIN + LABELS) * self.scale + column * self.pitch

    def size(self, blocks: int, lines: int = 2) -> tuple[int, int]:
        """(height, width) of the figure, with this many lines of notes."""
        width = (2 * MARGIN + LABELS - GAP) * self.scale + (self.columns + 1) * self.pitch
        return self.block(blocks) + (FOOTER + LINE * lines) * self.scale, max(width, NARROWEST * self.scale)


def attention_figure(recording: Recording, smooth: bool = False, tile: int = TILE) -> np.ndarray:
    """The figure of a recording with at least one map, uint8 (H, W, 3). Images are at least `tile` pixels wide."""
    blocks = blocks_of(recording)
    layout = Layout(len(recording.images), max(len(block.labels) for block in blocks), recording.images.shape[1], tile)
    notes = [line for note in dict.fromkeys(block.note for block in blocks) for line in note.split("\n")]
    height, width = layout.size(len(blocks), len(notes))
    canvas = Image.new("RGB", (width, height), WHITE)
    margin = MARGIN * layout.scale
    for i, block in enumerate(blocks):
        _write(canvas, layout, (margin, layout.block(i)), block.heading, 15, TEXT)
        _draw_labels(canvas, layout, i, block, recording)
        for image in range(layout.images):
            _draw_row(canvas, layout, i, image, block, recording, smooth)
    for i, line in enumerate(notes):
        _write(canvas, layout, (margin, layout.block(len(blocks)) + LINE * layout.scale * i), line, 12, FAINT)
    return np.asarray(canvas)


def _write(
    canvas: Image.Image, layout: Layout, place: tuple[int, int], text: str, size: int, color: Color,
    anchor: str = "la", outline: int = 0,
) -> None:  # fmt: skip
    font, width = _font(size * layout.scale), outline * layout.scale
    ImageDraw.Draw(canvas).text(place, text, color, font, anchor, stroke_width=width, stroke_fill=BLACK)


def _paste(canvas: Image.Image, tile: np.ndarray, y: int, x: int) -> None:
    canvas.paste(Image.fromarray(tile.round().astype(np.uint8)), (x, y))


def _draw_labels(canvas: Image.Image, layout: Layout, i: int, block: Block, recording: Recording) -> None:
    """Draw the label of each column above it, and seed and class beside each row."""
    s = layout.scale
    for column, label in enumerate(["image", *block.labels]):
        y, x = layout.tile(i, 0, column)
        middle = x + layout.side // 2
        if label:
            _write(canvas, layout, (middle, y - 7 * s), label, 12, FAINT, "ms")
        else:
            dot = np.full((16 * s, 16 * s, 3), WHITE, np.float32)
            _paste(canvas, with_dot(dot, [0.5, 0.5], color_of(column - 1), 5 * s), y - 19 * s, middle - 18 * s)
            _write(canvas, layout, (middle + 2 * s, y - 7 * s), f"{column}", 12, FAINT, "ls")
    for image, seed in enumerate(recording.seeds):
        y = layout.tile(i, image, 0)[0] + layout.side // 2
        _write(canvas, layout, (MARGIN * s, y - 2 * s), f"seed {seed}", 12, TEXT, "ls")
        name = recording.class_name(image)
        short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 2] + ".."
        _write(canvas, layout, (MARGIN * s, y + 14 * s), short, 12, FAINT, "ls")


def _draw_row(
    canvas: Image.Image, layout: Layout, i: int, image: int, block: Block, recording: Recording, smooth: bool
) -> None:
    """Draw the image with its dots or boxes, then the tile of each column."""
    side, s = layout.side, layout.scale
    large = enlarged(recording.images[image], side)
    points = recording.points[image].tolist() if block.labels[0] == "" else []
    first = large
    for j, point in enumerate(points):
        first = with_dot(first, point, color_of(j), side / 22)
    for j, box in enumerate(block.values[image, :, 0] if block.kind == "boxes" else []):
        first = with_box(first, box, color_of(j))
    _paste(canvas, first, *layout.tile(i, image, 0))
    for column in range(len(block.labels)):
        y, x = layout.tile(i, image, column + 1)
        tile = block.tile(image, column, large, smooth)
        if points:
            tile = with_dot(tile, points[column], color_of(column), side / 34)
        _paste(canvas, tile, y, x)
        corner = (x + side - 4 * s, y + side - 5 * s)
        _write(canvas, layout, corner, block.corner(image, column), 11, WHITE, "rs", outline=1)

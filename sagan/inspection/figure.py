"""The attention figure of the paper (arXiv:1805.08318, figs. 1 and 5), drawn with NumPy and Pillow.

One row an image: left the image with its query points as coloured dots, right of it one tile per point: the image
darkened, and in the dot's colour what this point attends to. One block a module and head.

Opacity is weight / max(largest weight of the map, FULL / M), M keys: the peak of a map is full colour only where it is
at least FULL times what uniform attention gives. So uniform attention is a flat quarter, and noise about it stays
faint. The corner of a tile gives the peak in multiples of uniform. Cells are shown as they are; `smooth` blends them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan.errors import UserError
from sagan.inspection.maps import Recording

TILE, GAP, MARGIN, LABELS, NARROWEST = 128, 6, 16, 82, 540  # pixels
HEADING, HEADS, BETWEEN, FOOTER = 26, 22, 14, 44
TEXT, FAINT, PAPER, INK = (32, 33, 36), (105, 109, 115), (255, 255, 255), (0, 0, 0)
COLOURS = (
    (255, 77, 77), (72, 187, 255), (255, 214, 10), (90, 230, 120),
    (224, 122, 255), (255, 150, 50), (0, 222, 205), (255, 150, 205),
)  # fmt: skip
FULL = 4  # multiples of uniform attention from which a peak is full colour
LONGEST_LABEL = 12  # characters
NOTE = (
    "In the corner of a map: its largest weight; 1x is uniform attention. Full colour is that weight,",
    f"or {FULL}x where it is smaller: so uniform attention is flat, and its noise stays faint.",
)


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels of the figure."""

    images: int
    points: int
    resolution: int
    least: int = TILE

    @property
    def side(self) -> int:
        """Of a tile: the smallest multiple of the resolution that has `least` pixels."""
        return self.resolution * -(-self.least // self.resolution)

    @property
    def block_height(self) -> int:
        return HEADING + HEADS + self.images * (self.side + GAP) - GAP + BETWEEN

    def block(self, block: int) -> int:
        """y of the upper edge of a block."""
        return MARGIN + block * self.block_height

    def tile(self, block: int, image: int, column: int) -> tuple[int, int]:
        """(y, x) of the upper left pixel of a tile; column 0 is the image, column j + 1 what point j attends to."""
        pitch = self.side + GAP
        return self.block(block) + HEADING + HEADS + image * pitch, MARGIN + LABELS + column * pitch

    def size(self, blocks: int) -> tuple[int, int]:
        """(height, width) of the whole figure."""
        width = MARGIN + LABELS + (self.points + 1) * (self.side + GAP) - GAP + MARGIN
        return self.block(blocks) + FOOTER, max(width, NARROWEST)


@dataclass(frozen=True)
class Block:
    """One head of one module."""

    heading: str
    weights: np.ndarray  # (B, k, H', W')
    size: tuple[int, int]  # of the query map


def attention_figure(recording: Recording, smooth: bool = False, tile: int = TILE) -> np.ndarray:
    """The figure as uint8 (H, W, 3), its images at least `tile` pixels wide. UserError when nothing was recorded."""
    if not recording.maps:
        raise UserError("nothing to draw: the network has no attention module")
    layout = Layout(len(recording.images), recording.points.shape[1], recording.images.shape[1], tile)
    blocks = _blocks(recording)
    height, width = layout.size(len(blocks))
    canvas = Image.new("RGB", (width, height), PAPER)
    for i, block in enumerate(blocks):
        _write(canvas, (MARGIN, layout.block(i)), block.heading, 15, TEXT)
        _draw_labels(canvas, layout, i, recording)
        for image in range(layout.images):
            corners = [layout.tile(i, image, column) for column in range(layout.points + 1)]
            _draw_row(canvas, layout.side, corners, recording, image, block, smooth)
    for i, line in enumerate(NOTE):
        _write(canvas, (MARGIN, layout.block(len(blocks)) + 16 * i), line, 12, FAINT)
    return np.asarray(canvas)


def opacity(weights: np.ndarray, size: tuple[int, int], side: int, smooth: bool = False) -> np.ndarray:
    """How opaque each pixel of a tile is: one map (H', W') of a query map of `size` -> (side, side) in [0, 1].

    A pooled key covers the query cells it was pooled from; a last odd row or column that no key sees stays empty.
    """
    shown = weights / max(weights.max(), FULL / weights.size)
    if smooth:
        blended = Image.fromarray(shown.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(blended), 0, 1)
    cells = [np.arange(side) * n // side for n in size]
    rows, columns = (np.minimum(c // (n // m), m) for c, n, m in zip(cells, size, weights.shape, strict=True))
    return np.pad(shown, ((0, 1), (0, 1)))[rows[:, None], columns]


def _blocks(recording: Recording) -> list[Block]:
    blocks = []
    for name, found in recording.maps.items():
        _, heads, _, *keys = found.weights.shape
        gamma = [f"gamma {recording.gamma[name]:.3g}"] if name in recording.gamma else []
        for head, weights in enumerate(found.weights.unbind(1)):
            which = [f"head {head + 1} of {heads}"] if heads > 1 else []
            heading = "    ".join([name, *which, *gamma, f"{keys[0]}x{keys[1]} keys"])
            blocks.append(Block(heading, weights.numpy(), recording.resolution[name]))
    return blocks


def _draw_labels(canvas: Image.Image, layout: Layout, block: int, recording: Recording) -> None:
    """A numbered dot over each column, seed and class beside each row."""
    for column in range(layout.points + 1):
        y, x = layout.tile(block, 0, column)
        middle = x + layout.side // 2
        if column == 0:
            _write(canvas, (middle, y - 7), "image", 12, FAINT, "ms")
        else:
            dot = np.full((16, 16, 3), PAPER, np.float32)
            canvas.paste(_to_image(_with_dot(dot, [0.5, 0.5], column - 1, 5)), (middle - 18, y - 19))
            _write(canvas, (middle + 2, y - 7), f"{column}", 12, FAINT, "ls")
    for image, (seed, label) in enumerate(zip(recording.seeds, recording.labels, strict=True)):
        y = layout.tile(block, image, 0)[0] + layout.side // 2
        _write(canvas, (MARGIN, y - 2), f"seed {seed}", 12, TEXT, "ls")
        if label >= 0:
            name = recording.class_names[label] if recording.class_names else f"class {label}"
            short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 2] + ".."
            _write(canvas, (MARGIN, y + 14), short, 12, FAINT, "ls")


def _draw_row(
    canvas: Image.Image, side: int, corners: list[tuple[int, int]], recording: Recording, image: int, block: Block,
    smooth: bool,
) -> None:  # fmt: skip
    """The tiles of one image at their corners (y, x): itself with its dots, then one map a point."""
    scale = side // recording.images.shape[1]
    large = recording.images[image].repeat(scale, 0).repeat(scale, 1).astype(np.float32)
    points = recording.points[image].tolist()
    tile = large
    for j, point in enumerate(points):
        tile = _with_dot(tile, point, j, side / 22)
    y, x = corners[0]
    canvas.paste(_to_image(tile), (x, y))
    for j, (point, weights, (y, x)) in enumerate(zip(points, block.weights[image], corners[1:], strict=True)):
        tile = _overlay(large, opacity(weights, block.size, side, smooth), j)
        canvas.paste(_to_image(_with_dot(tile, point, j, side / 34)), (x, y))
        peak = weights.max() * weights.size
        text = f"{peak:.0f}x" if peak >= 10 else f"{peak:.1f}x"
        _write(canvas, (x + side - 4, y + side - 5), text, 11, PAPER, "rs", outline=1)


def _overlay(image: np.ndarray, alpha: np.ndarray, j: int) -> np.ndarray:
    """The image dark and grey, under the colour of point j."""
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # (side, side, 1), ITU-R BT.601
    dark, colour = 16 + 0.35 * grey, np.array(_colour(j)) * (0.7 + 0.3 * grey / 255)
    return dark + alpha[..., None] * (colour - dark)


def _with_dot(tile: np.ndarray, point: list[float], j: int, radius: float) -> np.ndarray:
    """The tile with a dot in the colour of point j, in a white and a black ring, at fractions (row, column)."""
    height, width = tile.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y + 0.5 - point[0] * height, x + 0.5 - point[1] * width)
    for reach, colour in ((radius + 2.2, INK), (radius + 1.4, PAPER), (radius, _colour(j))):
        cover = np.clip(reach - distance + 0.5, 0, 1)[..., None]
        tile = tile + cover * (np.array(colour) - tile)
    return tile


def _colour(j: int) -> tuple[int, int, int]:
    return COLOURS[j % len(COLOURS)]


def _to_image(tile: np.ndarray) -> Image.Image:
    return Image.fromarray(tile.round().astype(np.uint8))


def _write(
    canvas: Image.Image, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int],
    anchor: str = "la", outline: int = 0,
) -> None:  # fmt: skip
    draw = ImageDraw.Draw(canvas)
    draw.text(place, text, colour, _font(size), anchor, stroke_width=outline, stroke_fill=INK)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

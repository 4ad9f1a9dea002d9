"""The attention figure of the paper (arXiv:1805.08318, figs. 1 and 5), drawn with NumPy and Pillow.

One row an image: left the image with its query points as coloured dots, right of it one tile per point: the image
darkened, and in the dot's colour what this point attends to. One block a module and head; what is the same for every
point (gates, bases, boxes) has a block of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan.errors import UserError
from sagan.inspection.blocks import Block, blocks_of
from sagan.inspection.maps import Recording
from sagan.inspection.tiles import INK, PAPER, colour_of, enlarged, with_box, with_dot

TILE, GAP, MARGIN, LABELS, NARROWEST = 128, 6, 16, 82, 540  # pixels, at the smallest tile
HEADING, HEADS, BETWEEN, FOOTER, LINE = 26, 22, 14, 12, 16
TEXT, FAINT = (32, 33, 36), (105, 109, 115)
LONGEST_LABEL = 12  # characters


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels of the figure. Text and gaps grow with the tiles."""

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
        self, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], anchor: str = "la",
        outline: int = 0,
    ) -> None:  # fmt: skip
        draw = ImageDraw.Draw(self.canvas)
        outline *= self.scale
        draw.text(place, text, colour, _font(size * self.scale), anchor, stroke_width=outline, stroke_fill=INK)

    def paste(self, tile: np.ndarray, y: int, x: int) -> None:
        self.canvas.paste(Image.fromarray(tile.round().astype(np.uint8)), (x, y))


def _draw_labels(pen: Pen, layout: Layout, i: int, block: Block, recording: Recording) -> None:
    """What each column is, over it; seed and class beside each row."""
    s = layout.scale
    for column, label in enumerate(["image", *block.labels]):
        y, x = layout.tile(i, 0, column)
        middle = x + layout.side // 2
        if label:
            pen.write((middle, y - 7 * s), label, 12, FAINT, "ms")
        else:
            dot = np.full((16 * s, 16 * s, 3), PAPER, np.float32)
            pen.paste(with_dot(dot, [0.5, 0.5], colour_of(column - 1), 5 * s), y - 19 * s, middle - 18 * s)
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
        first = with_dot(first, point, colour_of(j), side / 22)
    for j, box in enumerate(block.boxes[image] if block.boxes is not None else []):
        first = with_box(first, box, colour_of(j))
    pen.paste(first, *layout.tile(i, image, 0))
    for column in range(len(block.labels)):
        y, x = layout.tile(i, image, column + 1)
        tile = block.tile(image, column, large)
        if points:
            tile = with_dot(tile, points[column], colour_of(column), side / 34)
        pen.paste(tile, y, x)
        corner = (x + side - 4 * s, y + side - 5 * s)
        pen.write(corner, block.corner(image, column), 11, PAPER, "rs", outline=1)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

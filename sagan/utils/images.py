"""Conversion to uint8, PNG files, image grids and animations."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def to_uint8(images: "Tensor") -> "Tensor":
    """Convert images (B, C, H, W) in [-1, 1] to uint8 (B, H, W, 3) on the same device: ⌊127.5·x + 128⌋, clamped.

    One channel becomes three equal ones.
    """
    pixels = (images.float() * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return pixels.expand(-1, -1, -1, 3).contiguous()


def save_png(path: Path | str, image: np.ndarray, gray: bool = False) -> None:
    """Write uint8 (H, W, 3) as a PNG atomically, without metadata: equal images give equal bytes.

    `gray`: store the first channel alone.
    """
    with atomic_file(path) as temporary:
        Image.fromarray(image[..., 0] if gray else image).save(temporary, format="PNG")


def read_png(path: Path | str) -> np.ndarray:
    """Read a PNG as uint8 (H, W, 3). Raises UserError if it is damaged."""
    try:
        with Image.open(path, formats=("PNG",)) as image:  # another decoder, such as EPS, may start programs
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not readable as an image ({error})") from None


def as_png(image: Image.Image | np.ndarray) -> bytes:
    """The bytes of a PNG of uint8 (H, W, 3)."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format="PNG")
    return file.getvalue()


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge (N, H, W, 3) by a whole factor, without interpolation."""
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def image_grid(images: np.ndarray, columns: int, scale: int = 1, border: int = 2) -> np.ndarray:
    """Arrange uint8 (N, H, W, 3) row by row on white, `border` pixels apart: (H', W', 3)."""
    images = enlarge(images, scale)
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    canvas = np.full((rows * (height + border) + border, columns * (width + border) + border, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = border + i // columns * (height + border), border + i % columns * (width + border)
        canvas[top : top + height, left : left + width] = image
    return canvas


SMALLEST, CAPTION = 64, 15  # pixels: of an image in a sheet, of the line below it


def captioned_grid(
    images: np.ndarray, captions: Sequence[str] | None, columns: int, scale: int | None = None
) -> np.ndarray:
    """Arrange uint8 (N, H, W, 3) as `image_grid` does, with a caption below each image: (H', W', 3).

    `scale`: None enlarges images to 64 pixels or more.
    """
    images = enlarge(images, scale or max(1, SMALLEST // images.shape[2]))
    columns, (_, height, width, _) = min(columns, len(images)), images.shape
    if captions is None:
        return image_grid(images, columns)
    cells = np.pad(images, ((0, 0), (0, CAPTION), (0, 0), (0, 0)), constant_values=255)
    canvas = Image.fromarray(image_grid(cells, columns))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for i, caption in enumerate(captions[: len(images)]):
        while font.getlength(caption) > width and len(caption) > 2:
            caption = f"{caption[:-2]}…"
        left, top = i % columns * (width + 2) + 2 + width / 2, i // columns * (height + CAPTION + 2) + 2 + height
        draw.text((left, top + 1), caption, BLACK, font, anchor="ma")
    return np.asarray(canvas)


def name_rows(image: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Label the rows of a grid, which have equal heights, on the left: (H, W, 3) -> (H, margin + W, 3)."""
    row_height = image.shape[0] / len(names)
    font = ImageFont.load_default(size=min(max(0.4 * row_height, 9), 24))
    margin = int(max(font.getlength(name) for name in names)) + 8
    canvas = Image.new("RGB", (margin + image.shape[1], image.shape[0]), WHITE)
    canvas.paste(Image.fromarray(image), (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(names):
        draw.text((margin - 4, (row + 0.5) * row_height), name, fill=BLACK, font=font, anchor="rm")
    return np.asarray(canvas)


def save_animation(path: Path | str, frames: np.ndarray, fps: int) -> None:
    """Write uint8 frames (N, H, W, 3) as a looping .gif or an .mp4 (H.264), atomically."""
    import imageio.v3 as imageio

    with atomic_file(path) as temporary:
        if temporary.suffix == ".gif":
            imageio.imwrite(temporary, frames, plugin="pillow", duration=1000 / fps, loop=0)
        elif temporary.suffix == ".mp4":
            imageio.imwrite(temporary, frames, plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
        else:
            raise UserError(f"{path}: an animation must be a .gif or .mp4 file")

"""Decode image files to RGB pixels of one size; files without one obvious meaning are refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from sagan.data.sources import Item

PIXEL_LIMIT = 100_000_000  # per image; larger ones may be decompression bombs
SMALLEST_SIDE = 8
KNOWN_MODES = {
    "1": "grayscale", "L": "grayscale", "LA": "grayscale", "P": "palette", "PA": "palette", "CMYK": "cmyk",
    "RGB": None, "RGBA": None, "RGBX": None, "YCbCr": None,
}  # fmt: skip
UPRIGHT = {  # what undoes each value of the EXIF tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112


class Unusable(Exception):
    """An image that cannot be used at this resolution. `kind`: a key of `report.UNUSABLE`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def convert(
    item: Item, resolution: int, resize: str, channels: int = 3
) -> tuple[np.ndarray, int, list[str]]:  # fmt: skip
    """Read an item: pixels uint8 (R, R, channels), label, and what was converted (keys of `report.CONVERTED`).

    `resize`: "crop" takes the central square, "squash" ignores the aspect ratio; both use an antialiased Lanczos
    filter. An RGB image of exactly R×R keeps its bytes. One channel: the luminance (ITU-R BT.601). Raises Unusable.
    """
    with _decoding():
        image, label = item.read()
        with image:
            notes = _check(image, resolution)
            if image.format != "HEIF":  # it would give a thumbnail, a JPEG decodes at a fraction of its size
                image.draft(None, (2 * resolution, 2 * resolution))
            deep = _has_sixteen_bits(image)
            image.load()
            turn = UPRIGHT.get(_orientation(image))
            image = _to_rgb(image, deep, notes)
    if channels == 1:
        notes = [note for note in notes if note != "grayscale"]
        gray = image.convert("L")
        if ImageChops.difference(image, gray.convert("RGB")).getbbox() is not None:
            notes.append("color")
        image = gray
    if turn is not None:
        notes.append("rotated")
        image = image.transpose(turn)
    return np.asarray(_resized(image, resolution, resize)).reshape(resolution, resolution, channels), label, notes


def look(item: Item) -> tuple[tuple[int, int], int]:
    """(width, height), from the header, and label of an item. Raises Unusable."""
    with _decoding():
        image, label = item.read()
        with image:
            _check(image, resolution=0)
            return image.size, label


def decode(item: Item) -> np.ndarray:
    """The pixels of an item as stored, uint8 (H, W, 3), neither resized nor rotated. Raises Unusable."""
    with _decoding(), item.read()[0] as image:
        notes = _check(image, resolution=0)
        deep = _has_sixteen_bits(image)
        image.load()
        return np.asarray(_to_rgb(image, deep, notes))


@contextmanager
def _decoding() -> Iterator[None]:
    """Convert any exception of Pillow to Unusable."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable("huge", str(error)) from None
    except UnidentifiedImageError:
        raise Unusable("undecodable", "not an image") from None
    except Exception as error:  # a decoder raises anything on a damaged file
        raise Unusable("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from None


def _check(image: Image.Image, resolution: int) -> list[str]:
    """Check the header. Returns notes: whether the image will be enlarged."""
    width, height = image.size
    shorter = min(image.size)
    if width * height > PIXEL_LIMIT:
        raise Unusable("huge", f"{width}x{height}, more than {PIXEL_LIMIT // 1_000_000} million pixels")
    if shorter < max(SMALLEST_SIDE, resolution // 4):
        raise Unusable("tiny", f"{width}x{height}")
    # An MPO is a JPEG followed by a preview or a stereo image: its first frame is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Unusable("animated", "more than one frame")
    return ["upsampled"] if shorter < resolution else []


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the channels have 16 bits. Call it before `load`, which keeps only the high byte of 16-bit color."""
    packed = [str(tile[3]) for tile in image.tile] if isinstance(image, ImageFile.ImageFile) else []
    return (image.mode == "I" and image.format == "PNG") or any(re.search(";16[BLN]|I;16", text) for text in packed)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block
        return 1


def _to_rgb(image: Image.Image, deep: bool, notes: list[str]) -> Image.Image:
    """RGB without alpha; adds to `notes`."""
    if deep:
        notes.append("sixteen_bit")
        image = _high_bits(image) if image.mode.startswith("I") else image
    if image.mode not in KNOWN_MODES:
        raise Unusable("depth", f"pixel format {image.mode}")
    if kind := KNOWN_MODES[image.mode]:
        notes.append(kind)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise Unusable("transparent", "partly or fully transparent")
        notes.append("opaque_alpha")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bits(image: Image.Image) -> Image.Image:
    """16-bit grayscale to 8: value / 257, rounded."""
    values = np.asarray(image).astype(np.uint32)
    if "transparency" in image.info and (values == image.info["transparency"]).any():
        raise Unusable("transparent", "partly or fully transparent")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resized(image: Image.Image, resolution: int, resize: str) -> Image.Image:
    if resize == "crop" and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size == (resolution, resolution):
        return image
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)

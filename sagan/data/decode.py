"""From an image file to RGB pixels of one size: what has one obvious meaning is converted, the rest is refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from sagan.data.sources import Item

PIXEL_LIMIT = 100_000_000  # of one image; beyond it a small file may be a bomb
SMALLEST_SIDE = 8
KNOWN_MODES = {
    "1": "grayscale", "L": "grayscale", "LA": "grayscale", "P": "palette", "PA": "palette", "CMYK": "cmyk",
    "RGB": None, "RGBA": None, "RGBX": None, "YCbCr": None,
}  # fmt: skip
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what undoes each value of the EXIF tag Orientation
ORIENTATION = 0x0112


class Unusable(Exception):
    """An image that has no one obvious meaning at this resolution; `kind` is one of `doctor.UNUSABLE`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def convert(item: Item, resolution: int, resize: str) -> tuple[np.ndarray, int, list[str]]:
    """Read an item: pixels uint8 (R, R, 3), its label, and what had to be converted (kinds of `doctor.CONVERTED`).

    `resize`: "crop" takes the central square, "squash" ignores the aspect; both then scale with a Lanczos filter that
    widens with the reduction (antialiased). An RGB image of exactly R×R keeps its bytes. Raises Unusable.
    """
    with _decoding():
        image, label = item.read()
        with image:
            notes = _check(image, resolution)
            image.draft(
                None, (2 * resolution, 2 * resolution)
            )  # JPEG: decode at 1/2, 1/4 or 1/8 of the size if that is plenty
            deep = _has_sixteen_bits(image)
            image.load()
            turn = UPRIGHT.get(_orientation(image))
            image = _to_rgb(image, deep, notes)
    if turn is not None:
        notes.append("rotated")
        image = image.transpose(turn)
    return np.asarray(_resized(image, resolution, resize)), label, notes


def look(item: Item) -> tuple[tuple[int, int], int]:
    """(width, height) and label of an item, from its header. Raises Unusable."""
    with _decoding():
        image, label = item.read()
        with image:
            _check(image, resolution=0)
            return image.size, label


def decode(item: Item) -> np.ndarray:
    """The pixels of an item, uint8 (H, W, 3), at the size and the way up in which they are stored. Raises Unusable."""
    with _decoding(), item.read()[0] as image:
        notes = _check(image, resolution=0)
        deep = _has_sixteen_bits(image)
        image.load()
        return np.asarray(_to_rgb(image, deep, notes))


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever Pillow raises becomes Unusable."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable("huge", str(error)) from None
    except UnidentifiedImageError:
        raise Unusable("undecodable", "not an image, whatever its name says") from None
    except Exception as error:  # a decoder raises anything on a damaged file
        raise Unusable("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from None


def _check(image: Image.Image, resolution: int) -> list[str]:
    """Refuse what the header already rules out; note an image that will be enlarged."""
    width, height = image.size
    shorter = min(image.size)
    if width * height > PIXEL_LIMIT:
        raise Unusable("huge", f"{width}x{height}, more than {PIXEL_LIMIT // 1_000_000} million pixels")
    if shorter < max(SMALLEST_SIDE, resolution // 4):
        raise Unusable("tiny", f"{width}x{height}")
    # An MPO is a JPEG with a preview or a second eye behind it: its first frame is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Unusable("animated", "more than one frame")
    return ["upsampled"] if shorter < resolution else []


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the channels hold 16 bits; to be asked before `load`, which keeps the high byte of 16-bit colour."""
    packed = [str(tile[3]) for tile in image.tile] if isinstance(image, ImageFile.ImageFile) else []
    return (image.mode == "I" and image.format == "PNG") or any(re.search(";16[BLN]|I;16", text) for text in packed)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about how the picture stands
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
            raise Unusable("transparent", "nothing says what is behind it")
        notes.append("opaque_alpha")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bits(image: Image.Image) -> Image.Image:
    """16-bit grayscale to 8: value / 257, rounded."""
    values = np.asarray(image).astype(np.uint32)
    if "transparency" in image.info and (values == image.info["transparency"]).any():
        raise Unusable("transparent", "nothing says what is behind it")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resized(image: Image.Image, resolution: int, resize: str) -> Image.Image:
    if resize == "crop" and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size == (resolution, resolution):
        return image
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)

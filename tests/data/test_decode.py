"""From files to pixels, with a real file for each oddity."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.decode import Unusable, convert
from sagan.data.files import open_image
from sagan.data.sources import Item

# Pillow warns of damage and of large sizes; preparation silences it, since its own checks are stricter.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

ORIENTATION = 0x0112


def read(path: Path, resolution: int = 32, resize: str = "crop") -> tuple[np.ndarray, list[str]]:
    pixels, label, notes = convert(Item(path.name, lambda: open_image(str(path), 7)), resolution, resize)
    assert (pixels.shape, pixels.dtype, label) == ((resolution, resolution, 3), np.uint8, 7)
    return pixels, notes


def refused(path: Path, resolution: int = 32) -> str:
    with pytest.raises(Unusable) as error:
        read(path, resolution)
    return error.value.kind


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_exact_size_keeps_its_bytes(tmp_path: Path, photo, suffix: str):
    image = photo(0, (32, 32))
    image.save(tmp_path / f"a.{suffix}", lossless=True)
    pixels, notes = read(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels, np.asarray(image))
    assert notes == []


def test_reduction_is_antialiased(tmp_path: Path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    pixels, _ = read(tmp_path / "a.png")
    assert 120 <= pixels.min() <= pixels.max() <= 136


def test_crop_takes_the_center_and_squash_all(tmp_path: Path):
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = [0, 255, 0]
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png")[0] == [0, 255, 0]).all()
    squashed, _ = read(tmp_path / "a.png", resize="squash")
    assert (squashed[:, :8] == 0).all()
    assert (squashed[:, 14:18] == [0, 255, 0]).all()
    assert (squashed[:, -8:] == 0).all()


def test_large_jpeg_is_reduced_while_decoding_without_harm(tmp_path: Path, photo):
    image = photo(1, (1200, 800))
    image.save(tmp_path / "a.jpg", quality=95)
    fast, _ = read(tmp_path / "a.jpg")
    exact = np.asarray(image.crop((200, 0, 1000, 800)).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(fast.astype(int) - exact).max() <= 4


def test_grayscale_palette_and_cmyk(tmp_path: Path, photo):
    image = photo(2, (32, 32))
    image.convert("L").save(tmp_path / "gray.png")
    pixels, notes = read(tmp_path / "gray.png")
    assert notes == ["grayscale"]
    assert np.array_equal(pixels, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))

    image.quantize(256).save(tmp_path / "palette.png")
    pixels, notes = read(tmp_path / "palette.png")
    assert notes == ["palette"]
    assert np.array_equal(pixels, np.asarray(image.quantize(256).convert("RGB")))

    flat = Image.new("RGB", (64, 64), (200, 30, 90)).convert("CMYK")
    flat.save(tmp_path / "print.jpg", quality=95)
    pixels, notes = read(tmp_path / "print.jpg")
    assert notes == ["cmyk"]
    assert np.abs(pixels.astype(int) - [200, 30, 90]).max() <= 6


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, photo):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels, notes = read(tmp_path / name)
        assert notes == ["sixteen_bit", "grayscale"]
        assert np.array_equal(pixels[..., 0], np.round(values / 257).astype(np.uint8))


def test_sixteen_bit_color(tmp_path: Path):
    values = np.linspace(0, 65535, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(_png(values, 32, bit_depth=16, color_type=2))
    pixels, notes = read(tmp_path / "a.png")
    assert notes == ["sixteen_bit"]
    assert np.abs(pixels.astype(float) - values / 257).max() <= 1


def test_alpha_is_dropped_where_it_hides_nothing_and_refused_where_it_does(tmp_path: Path, photo):
    image = photo(3, (32, 32)).convert("RGBA")
    image.save(tmp_path / "opaque.png")
    pixels, notes = read(tmp_path / "opaque.png")
    assert notes == ["opaque_alpha"]
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))

    image.putpixel((5, 5), (0, 0, 0, 128))
    image.save(tmp_path / "hole.png")
    image.quantize().save(tmp_path / "hole.gif", transparency=0)
    gray = Image.new("L", (32, 32), 9)
    gray.save(tmp_path / "key.png", transparency=9)
    Image.fromarray(np.full((32, 32), 900, np.uint16)).save(tmp_path / "key16.png", transparency=900)
    kinds = {name: refused(tmp_path / name) for name in ("hole.png", "hole.gif", "key.png", "key16.png")}
    assert set(kinds.values()) == {"transparent"}, kinds


def test_photos_of_a_phone(tmp_path: Path, photo):
    heif = pytest.importorskip("pillow_heif")
    image, exif = photo(4, (64, 48)), Image.Exif()
    exif[ORIENTATION] = 6
    for name in ("a.HEIC", "a.heif", "a.hif", "renamed.jpg"):
        heif.from_pillow(image).save(tmp_path / "a", quality=-1, chroma=444, matrix_coefficients=0)
        (tmp_path / "a").rename(tmp_path / name)
        expected = image.crop((8, 0, 56, 48)).resize((32, 32), Image.Resampling.LANCZOS)
        assert np.abs(read(tmp_path / name)[0].astype(int) - np.asarray(expected)).max() <= 2
    image.save(tmp_path / "turned.heic", format="HEIF", exif=exif.tobytes(), quality=95)
    expected = image.transpose(Image.Transpose.ROTATE_270).crop((0, 8, 48, 56)).resize((32, 32))
    assert np.abs(read(tmp_path / "turned.heic")[0].astype(int) - np.asarray(expected)).mean() <= 6
    photo(6, (512, 512)).save(tmp_path / "large.heic", format="HEIF", thumbnails=[256])
    with Image.open(tmp_path / "large.heic") as whole:  # not its thumbnail
        expected = whole.resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(read(tmp_path / "large.heic", 64)[0], np.asarray(expected))
    image.save(tmp_path / "burst.heic", format="HEIF", save_all=True, append_images=[photo(5, (64, 48))])
    assert refused(tmp_path / "burst.heic") == "animated"
    (tmp_path / "cut.heic").write_bytes((tmp_path / "turned.heic").read_bytes()[:300])
    assert refused(tmp_path / "cut.heic") == "undecodable"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, photo, orientation: int):
    from PIL import ImageOps

    image = photo(4, (64, 64))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for name in ("a.jpg", "a.png", "a.webp"):
        image.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as saved:
            expected = ImageOps.exif_transpose(saved).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
        pixels, notes = read(tmp_path / name)
        assert notes == ([] if orientation == 1 else ["rotated"])
        assert np.array_equal(pixels, np.asarray(expected))


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, photo):
    photo(5, (32, 32)).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage")
    assert read(tmp_path / "a.jpg")[1] == []


def test_animations_are_refused_but_one_frame_is_a_picture(tmp_path: Path, photo):
    frames = [photo(i) for i in range(3)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert refused(tmp_path / name) == "animated", name
    frames[0].save(tmp_path / "still.gif")
    assert read(tmp_path / "still.gif")[1] == ["palette"]
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "phone.jpg")[1] == []


def test_damaged_files(tmp_path: Path, photo):
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif"):
        photo(6, (64, 64)).save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for keep in (0, 3, 30, len(whole) // 2):
            (tmp_path / f"cut.{suffix}").write_bytes(whole[:keep])
            assert refused(tmp_path / f"cut.{suffix}") == "undecodable", (suffix, keep)
    (tmp_path / "text.png").write_text("not a picture")
    assert refused(tmp_path / "text.png") == "undecodable"


def test_sizes(tmp_path: Path, photo):
    photo(8, (31, 40)).save(tmp_path / "small.png")
    assert read(tmp_path / "small.png")[1] == ["upsampled"]
    photo(8, (8, 40)).save(tmp_path / "eight.png")
    assert read(tmp_path / "eight.png")[1] == ["upsampled"]
    photo(8, (7, 40)).save(tmp_path / "seven.png")
    assert refused(tmp_path / "seven.png") == "tiny"
    photo(8, (31, 31)).save(tmp_path / "quarter.png")
    assert refused(tmp_path / "quarter.png", resolution=128) == "tiny"


def test_pixels_without_one_meaning_are_refused(tmp_path: Path):
    Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)).save(tmp_path / "float.tif")
    Image.fromarray(np.arange(1024, dtype=np.int32).reshape(32, 32)).save(tmp_path / "int.tif")
    assert refused(tmp_path / "float.tif") == refused(tmp_path / "int.tif") == "depth"


def _png(values: np.ndarray, height: int, bit_depth: int, color_type: int) -> bytes:
    """A PNG whose header claims `height` rows of the width of `values`."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], height, bit_depth, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

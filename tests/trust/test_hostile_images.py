"""Hostile images, links that leave a folder, and names with escape sequences."""

import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import assert_refused, attempt
from standin import NAME

from sagan.data.sources import FolderSource
from sagan.evaluation.features import from_files
from sagan.utils.errors import UserError, escaped
from sagan.utils.io import expand_home


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *more: bytes) -> bytes:
    """A grayscale PNG that says to be this large."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(image: Image.Image, path: Path, **options: object) -> None:
    image.save(path, **options)


def much_text() -> bytes:
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))


RGB = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3)).astype(np.uint8))
DEEP = Image.fromarray(np.full((40, 40), 60_000, np.uint16))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(SPRUNG) (w) file\nshowpage\n"
IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {  # what makes it, and words of the message
    "60000x60000": (lambda p: p.write_bytes(png(60_000, 60_000, bytes(1000))), "too large"),
    "12000x12000": (lambda p: p.write_bytes(png(12_000, 12_000, bytes(1000))), "too large"),
    "2^31 wide": (lambda p: p.write_bytes(png(2**31 - 1, 1)), "1 "),
    "no size": (lambda p: p.write_bytes(png(0, 0)), "1 "),
    "much text": (lambda p: p.write_bytes(png(40, 40, b"", much_text())), "decoded"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:600]), "decoded"),
    "animated": (lambda p: saved(RGB, p, format="GIF", save_all=True, append_images=[RGB.rotate(90)]), "frames"),
    "frames of a TIFF": (lambda p: saved(RGB, p, format="TIFF", save_all=True, append_images=[RGB] * 3), "frames"),
    "transparent": (lambda p: saved(Image.new("RGBA", (40, 40)), p), "transparent"),
    "floats": (lambda p: saved(Image.new("F", (40, 40)), p, format="TIFF"), "pixel format"),
    "PostScript": (lambda p: p.write_bytes(EPS), "not an image"),
    "empty": (lambda p: p.write_bytes(b""), "decoded"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "a pipe"),
    "a link out": (lambda p: (p.unlink(), p.symlink_to("../../c.yaml")), "links out of the folder"),
    "a link to a device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "links out of the folder"),
    "a link to itself": (lambda p: (p.unlink(), p.symlink_to(p.name)), "links out of the folder"),
}  # fmt: skip


@pytest.fixture
def pets(place: Path, tmp_path: Path) -> Path:
    """Images of cats and dogs; dog/1.png is to be replaced."""
    return shutil.copytree("pets", tmp_path / "pets")


@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images(name: str, pets: Path, place: Path, tmp_path: Path) -> None:
    make, words = IMAGES[name]
    make(pets / "dog" / "1.png")
    assert_refused(f"prepare {pets} --out out", words, place)
    code, message, _ = attempt(f"evaluate {pets} --reference pets --backbone {NAME}", place)
    assert code == 2, message
    assert len(message.splitlines()) == 1
    assert "dog/1.png" in message
    code, message, _ = attempt(f"prepare {pets} --out {tmp_path / 'out'} --skip-bad", place)
    assert code == 0, message
    assert "dog/1.png\t" in (tmp_path / "out" / "skipped.txt").read_text()
    assert not Path("SPRUNG").exists()


@pytest.mark.parametrize(("name", "image", "pixel"), [
    ("16 bits", DEEP, (233, 233, 233)), ("CMYK", Image.new("CMYK", (40, 40), (0, 255, 255, 0)), (255, 0, 0)),
    ("palette", Image.new("P", (40, 40)), (0, 0, 0)), ("gray", Image.new("L", (40, 40), 9), (9, 9, 9)),
])  # fmt: skip
def test_images_with_an_obvious_meaning_are_measured(
    name: str, image: Image.Image, pixel: tuple[int, ...], tmp_path: Path
) -> None:
    image.save(tmp_path / ("a.tiff" if name == "CMYK" else "a.png"))
    assert from_files(tmp_path).read(np.arange(1))[0, 0, 0].tolist() == list(pixel)


def test_links_that_leave_the_folder(pets: Path) -> None:
    (pets / "out").symlink_to("/usr")
    (pets / "round").symlink_to("round")
    (pets / "cat" / "up").symlink_to("..")
    (pets / "cat" / "a.png").symlink_to("b.png")
    (pets / "cat" / "b.png").symlink_to("a.png")
    (pets / "cat" / "c.png").symlink_to("0.png")
    source = FolderSource(pets)
    assert {(problem.kind, problem.name) for problem in source.problems} == {
        ("outside", "out"), ("outside", "round"), ("outside", "cat/a.png"), ("outside", "cat/b.png"),
    }  # fmt: skip
    assert len(source) == 5


def test_folders_without_end(pets: Path) -> None:
    deep = pets / "cat"
    for _ in range(100):
        deep = deep / "a"
    deep.mkdir(parents=True)
    (kind, name, reason), *_ = FolderSource(pets).problems
    assert (kind, reason) == ("nested", "is nested more than 32 folders deep")
    assert len(name) <= 200


NAMES = [b"\x1b[2J\x1b[31m", b"a\nfine: b", b"\xff\xfe", b"\r", b"\x07", "\u202egnp".encode(), b"x" * 250]


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize("name", NAMES)
def test_odd_names(name: bytes, place: Path, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/pets"
    for label in (b"cat", name):
        os.makedirs(root + b"/" + label)
        for number in range(2):
            RGB.save(os.fsdecode(root + b"/" + label + b"/%d.png" % number))
    os.rename(root + b"/cat/0.png", root + b"/cat/" + name[:200] + b".png")
    assert attempt(f"prepare {tmp_path / 'pets'} --out {tmp_path / 'out'}", place).code == 0
    for path in (tmp_path / "out").glob("*.json"):
        assert path.read_text().isascii()
    with open(root + b"/" + name + b"/0.png", "wb") as file:
        file.write(b"no image")
    assert_refused(f"prepare {tmp_path / 'pets'} --out out", "cannot be decoded", place)
    os.rename(os.fsencode(tmp_path) + b"/pets", os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(UserError) as caught:
        from_files(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b"/nothing")))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("message", "shown"), [
    ("a: \x1b[2J", "a: \\x1b[2J"), ("\udcff", "\\udcff"), ("a\nb", "a\\nb"), ("a:\n  b\n  c", "a:\n  b\n  c"),
    ("ü…", "ü…"), ("\u202e", "\\u202e"), ("a\n", "a\\n"), ("\x9b2J", "\\x9b2J"), ("a\r\n  b", "a\\r\n  b"),
])  # fmt: skip
def test_messages_are_fit_for_a_terminal(message: str, shown: str) -> None:
    assert str(UserError(message)) == shown
    assert all(escaped(line).isprintable() for line in message.split("\n"))


def test_messages_end() -> None:
    message = str(UserError(f"a: {'x' * 10**6} is wrong; take y"))
    assert len(message) < 1600
    assert message.endswith("is wrong; take y")


def test_no_such_user(place: Path) -> None:
    with pytest.raises(UserError, match="no such user"):
        expand_home("~nobody-by-this-name/data")
    assert_refused("prepare '~nobody-by-this-name/data' --out out", "no such user", place)
    assert_refused("prepare shapes:8 --out '~nobody-by-this-name/out'", "no such user", place)
    assert_refused("prepare shapes:99999999999999999999 --out out", "expected shapes:COUNT", place)

"""Archives are read in place; what would leave them, or unpack to far more than it is, is refused."""

import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.prepare import prepare
from sagan.data.sources import FolderSource, open_source
from sagan.utils.errors import UserError

PACK = {"zip": "zip"}


def pack(folder: Path, kind: str) -> Path:
    """An archive of the folder, which is at its top."""
    made = shutil.make_archive(str(folder), PACK[kind], folder.parent, folder.name)
    return Path(made).rename(folder.parent / f"{folder.name}.{kind}")


@pytest.mark.parametrize("kind", PACK)
def test_an_archive_is_as_good_as_its_folder(folder: Path, kind: str, tmp_path: Path):
    (folder / "cow").mkdir()
    (folder / "dog" / "bad.png").write_text("")
    (folder / "cat" / ".hidden.png").write_text("")
    path = pack(folder, kind)
    expected = prepare(str(folder), tmp_path / "a", 32, skip_bad=True).manifest
    before = sorted(tmp_path.rglob("*"))
    found = prepare(str(path), tmp_path / "b", 32, skip_bad=True).manifest
    assert (found.content_hash, found.class_names) == (expected.content_hash, expected.class_names)
    assert found.source == f"pets.{kind}"
    assert [line.split("\t")[:2] for line in (tmp_path / "b" / "skipped.txt").read_text().splitlines()] == [
        ["cow", "empty_class"], ["pets/dog/bad.png", "undecodable"],
    ]  # fmt: skip
    assert {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "b"} == {*before, tmp_path / "b"}
    with pytest.raises(UserError, match="within the source"):
        prepare(str(path), path / "out", 32, skip_bad=True)


@pytest.mark.parametrize("kind", PACK)
def test_a_packed_flat_folder(folder: Path, kind: str):
    source = open_source(str(pack(folder / "cat", kind)), 32)
    assert (len(source), source.class_names()) == (4, ())


@pytest.mark.parametrize("kind", PACK)
def test_damaged_archives(folder: Path, kind: str, tmp_path: Path):
    path = pack(folder, kind)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[: -len(whole) // 4]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or no archive"):
            open_source(str(path), 32)


def png(name: str = "") -> bytes:
    path = Path(name or "x.png")
    Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return path.read_bytes()


def test_a_hostile_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    picture = png()
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("good.png", "__MACOSX/x.png", "../up.png", "/etc/abs.png", "C:\\x.png", "a/../../b.png"):
            archive.writestr(name, picture)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(1 << 27))
        archive.writestr("/".join("d" * 40) + "/deep.png", picture)
        archive.writestr("rare.png", picture, zipfile.ZIP_LZMA)
        archive.writestr("\x1b[31m.png", picture)
    source = FolderSource(Path("a.zip"))
    found = {(problem.kind, problem.name) for problem in source.problems}
    assert found == {
        ("unsafe", "../up.png"), ("unsafe", "/etc/abs.png"), ("unsafe", "C:\\x.png"), ("unsafe", "a/../../b.png"),
        ("unsafe", "link.png"), ("huge", "bomb.png"), ("nested", "/".join("d" * 40) + "/deep.png"),
        ("undecodable", "rare.png"),
    }  # fmt: skip
    assert [item.name for item in source.items()] == ["\\x1b[31m.png", "good.png"]
    assert prepare("a.zip", "out", 32, skip_bad=True).manifest.count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out", "x.png"]


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is read of a member is no more than it claims."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 26))
    content = bytearray(Path("a.zip").read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = (100).to_bytes(4, "little")
    Path("a.zip").write_bytes(content)
    (_, place), = FolderSource(Path("a.zip"))._files.read([0])  # fmt: skip
    assert not isinstance(place, str)
    tracemalloc.start()
    with pytest.raises(zipfile.BadZipFile):
        place()
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_an_encrypted_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", png())
    content = bytearray(Path("a.zip").read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    Path("a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"holds no usable image; a.png: is encrypted"):
        open_source("a.zip", 32)


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png())
    assert prepare("a.zip", "out", 32).manifest.count == 1

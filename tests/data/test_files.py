"""Archives are read in place; what would leave them, or unpack to far more than it is, is refused."""

import gzip
import io
import shutil
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.data.prepare import prepare
from sagan.data.sources import FolderSource, open_source
from sagan.utils.errors import UserError

PACK = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tgz": "gztar"}


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
def test_a_folder_in_an_archive(folder: Path, kind: str, tmp_path: Path):
    folder.rename(tmp_path / "train")
    for split in ("set/train", "set/val"):
        shutil.copytree(tmp_path / "train", tmp_path / split)
    path = pack(tmp_path / "set", kind)
    with pytest.raises(UserError, match=f"train, val are splits, not classes; give one of them, such as {path}/train"):
        open_source(str(path), 32)
    source = open_source(f"{path}/train", 32)
    assert (source.name, source.class_names(), len(source)) == (f"set.{kind}/train", ("cat", "dog"), 8)
    assert {item.name.split("/")[1] for item in source.items()} == {"train"}
    with pytest.raises(UserError, match="holds no folder tarin"):
        open_source(f"{path}/tarin", 32)


@pytest.mark.parametrize("kind", PACK)
def test_damaged_archives(folder: Path, kind: str, tmp_path: Path):
    path = pack(folder, kind)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[: -len(whole) // 4]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged or no archive|truncated"):
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
        archive.writestr("video.bin", bytes(1 << 27))
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
    assert source.ignored == ("video.bin",)
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


def add(
    archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_hostile_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    picture = png()
    with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member in ("./good.png", "../up.png", "/etc/abs.png", "a/../../b.png", "\x1b[31m.png", ".hidden.png"):
            add(archive, member, picture)
        add(archive, "symbolic.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(archive, "hard.png", kind=tarfile.LNKTYPE, link="good.png")
        add(archive, "pipe.png", kind=tarfile.FIFOTYPE)
        add(archive, "device.png", kind=tarfile.CHRTYPE)
        add(archive, "/".join("d" * 40) + "/deep.png", picture)
    source = open_source(name, 32)
    assert {(problem.kind, problem.name) for problem in source.problems} == {
        ("unsafe", "../up.png"), ("unsafe", "/etc/abs.png"), ("unsafe", "a/../../b.png"), ("unsafe", "symbolic.png"),
        ("unsafe", "hard.png"), ("undecodable", "pipe.png"), ("undecodable", "device.png"),
        ("nested", "/".join("d" * 40) + "/deep.png"),
    }  # fmt: skip
    assert sorted(item.name for item in source.items()) == ["\\x1b[31m.png", "good.png"]
    assert prepare(name, "out", 32, skip_bad=True).manifest.count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "out", "x.png"]


def refused(path: str) -> str:
    """The message, for which little memory is needed."""
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        open_source(path, 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    return str(error.value)


def test_bombs_in_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    header = tarfile.TarInfo("a.png")
    header.size = 1 << 27
    with gzip.open("a.tar.gz", "wb") as file:
        file.write(header.tobuf())
        for _ in range(128):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    assert "it is truncated or malicious" in refused("a.tar.gz")
    Path("b.tar").write_bytes(header.tobuf() + bytes(1024))
    assert "it is truncated or malicious" in refused("b.tar")
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        header.type = kind
        with gzip.open("c.tar.gz", "wb") as file:
            file.write(header.tobuf())
            for _ in range(128):
                file.write(bytes(1 << 20))
        assert f"a header of {header.size} bytes" in refused("c.tar.gz")


def test_a_tar_cut_off_between_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """tarfile itself takes it for whole."""
    monkeypatch.chdir(tmp_path)
    picture = png()
    with tarfile.open("a.tar", "w") as archive:
        for i in range(4):
            add(archive, f"{i}.png", picture)
    whole, size = Path("a.tar").read_bytes(), 512 + -(-len(picture) // 512) * 512
    assert len(open_source("a.tar", 32)) == 4
    for content in (
        whole[: 3 * size],
        whole[: 3 * size + 200],
        whole[: 3 * size] + b"x" * 512 + whole[3 * size + 512 :],
    ):
        Path("a.tar").write_bytes(content)
        assert "ends within a member" in refused("a.tar")
    whole = gzip.compress(whole)
    Path("a.tar.gz").write_bytes(whole[:-8] + b"xxxx" + whole[-4:])
    assert "CRC" in refused("a.tar.gz")


def shard(path: Path, samples: dict[str, bytes | str]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in samples.items():
            add(archive, name, content.encode() if isinstance(content, str) else content)


def read(source: str) -> dict[str, str]:
    opened = open_source(source, 32)
    assert opened.problems == ()
    names = opened.class_names()
    return {item.name: names[item.read()[1]] if names else "" for item in opened.items()}


SIDES = {
    "cls": lambda k: (".cls", str(k)), "json": lambda k: (".json", f'{{"width": 9, "label": {k}}}'),
    "plain json": lambda k: (".json", str(k)), "txt": lambda k: (".txt", f"kind {k}\n"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("kind", SIDES)
def test_webdataset_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str):
    """Keys repeat between the shards; the folders of some are not classes."""
    monkeypatch.chdir(tmp_path)
    expected = {}
    for number in range(8, 12):
        samples: dict[str, bytes | str] = {}
        for i in range(4):
            k = (number + i) % 3
            end, label = SIDES[kind](k)
            samples |= {f"part{i % 2}/{i}{end}": label, f"part{i % 2}/{i}.v1.png": png(str(4 * number + i) + ".png")}
            expected[f"s-{number:03d}.{ending}/part{i % 2}/{i}.v1.png"] = f"kind {k}" if kind == "txt" else str(k)
        shard(Path(f"s-{number:03d}.{ending}"), samples)
    assert read(f"s-{{008..011}}.{ending}") == expected
    one = {name.partition("/")[2]: label for name, label in expected.items() if name.startswith("s-008")}
    assert read(f"s-008.{ending}") == one
    manifest = prepare(f"s-{{008..011}}.{ending}", "out", 32).manifest
    assert (manifest.count, manifest.num_classes) == (16, 3)
    assert manifest.source == f"s-{{008..011}}.{ending}"
    assert f"1 of its 5 shards do not exist: s-012.{ending}" in refused(f"s-{{008..012}}.{ending}")


def test_shards_of_class_folders_and_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "dog")):
        shard(Path(f"a{number}.tar"), {f"set/{name}/{i}.png": png(f"{number}{i}.png") for i in range(2)})
    assert list(read("a{0..1}.tar").values()) == ["cat", "cat", "dog", "dog"]
    shard(Path("b.tar"), {f"{i}.{end}": png() if end == "png" else f"a bird with {i} feathers" for i in range(120)
                          for end in ("png", "txt")})  # fmt: skip
    assert set(read("b.tar").values()) == {""}
    shard(Path("c.tar"), {"0.png": png(), "0.cls": "1", "1.png": png(), "1.cls": "2", "2.png": png()})
    assert [p[:2] for p in open_source("c.tar", 32).problems] == [("unlabelled", "2.png")]
    shard(Path("d.tar"), {"0.png": png(), "0.cls": "1", "1.png": png(), "1.cls": "x"})
    assert "its .cls files: expected one kind of label" in refused("d.tar")
    for wrong in ("a{1..0}.tar", "a{0..x}.tar", "a{0..1}.zip"):
        assert "expected shards as" in refused(wrong)


@pytest.mark.slow
def test_shards_of_the_webdataset_library(tmp_path: Path):
    library = pytest.importorskip("webdataset", reason="pip install webdataset, which only this test needs")
    with library.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=5, verbose=0) as writer:
        for i in range(12):
            writer.write({"__key__": f"{i:04d}", "png": Image.new("RGB", (32, 32), (i, 0, 0)), "cls": i % 3})
    source = open_source(str(tmp_path / "s-{000000..000002}.tar"), 32)
    assert [item.read()[1] for item in source.items()] == [i % 3 for i in range(12)]
    assert [item.read()[0].getpixel((0, 0))[0] for item in source.items()] == list(range(12))

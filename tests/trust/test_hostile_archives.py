"""Archives of arrays made to hurt: lies in headers, bombs, names that lead elsewhere."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sagan.data.sources import NpzSource
from sagan.evaluation.fid import load_statistics
from sagan.sampling.writer import read_npz
from sagan.utils.errors import UserError


def npy(shape: str, descr: str = "'|u1'", data: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


def claiming(path: Path, size: int) -> None:
    """Rewrite the sizes that a zip's directory and local headers claim."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset : at + offset + 4] = struct.pack("<I", size)
            at = content.find(mark, at + 4)
    path.write_bytes(content)


def test_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    huge = 4_000_000_000
    data = npy("(1, 8, 8, 3)", data=bytes(192))
    for members, claim, says in (
        ({"images.npy": npy("(1099511627776, 8, 8, 3)")}, None, "which does not fit its"),
        ({"images.npy": npy("(-2, 8, -8, 3)", data=bytes(384))}, None, "which does not fit its"),
        ({"images.npy": npy(f"({huge - 128},)")}, huge, "claims 4000000000 bytes, more than can be packed"),
        ({"images.npy": npy("(" * 200)}, None, "images is not a NumPy array"),
        ({"images.npy": npy("(1, 8, 8, 3)", "[('a', '|O')]", bytes(192))}, None, "holds Python objects"),
        ({"images.npy": npy("(1, 8, 8, 3)", "('|u1', (1000000000,))")}, None, "images"),
        ({"../../images.npy": data, "/images.npy": data}, None, "holds no array `images`"),
        ({"images.npy": data, "labels.npy": npy("(1,)", "'|V2000000000'")}, None, "which does not fit its"),
        ({"\x1b[2J.npy": data}, None, "holds no array `images`, only \\x1b[2J"),
    ):
        archive(path, members)
        if claim is not None:
            claiming(path, claim)
        with pytest.raises(UserError) as caught:
            NpzSource(path)
        assert says in str(caught.value)
        assert str(caught.value).isprintable()


def test_names_in_archives_reach_no_folder(tmp_path: Path) -> None:
    data = npy("(1, 8, 8, 3)", data=bytes(192))
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in" / "a.npz", {"../x.npy": data, "/tmp/x.npy": data, "images.npy": data, "images.npy/y": data})
    assert len(list(NpzSource(tmp_path / "in" / "a.npz").items())) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for count in (5, 2):
            file.writestr("images.npy", npy(f"({count}, 8, 8, 3)", data=bytes(192 * count)))
    source = NpzSource(tmp_path / "a.npz")
    assert len(source) == len(list(source.items())) == 2


@pytest.mark.parametrize("read", [load_statistics, read_npz])
def test_bombs_are_not_unpacked(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a.npz"
    bomb, plain = npy("(70000000,)", data=bytes(70_000_000)), npy("(1,)", data=b"1")
    large = "mu.npy" if read is load_statistics else "images.npy"
    archive(path, {"sigma.npy": plain, "seeds.npy": plain, "labels.npy": plain, large: bomb}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="which suggests a decompression bomb"):
        read(path)


def test_an_array_that_unpacks_well_is_prepared(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((25_000, 32, 32, 3), np.uint8))
    source = NpzSource(tmp_path / "a.npz")
    assert len(source) == 25_000
    with pytest.raises(UserError, match="which suggests a decompression bomb"):
        source.check_expansion()


def test_statistics_say_what_we_write(tmp_path: Path, sound: Path) -> None:
    from sagan.evaluation.fid import _digest

    with np.load(sound / "statistics.npz", allow_pickle=False) as arrays:
        whole = dict(arrays)
    for changes in (
        {"about": np.array("[" * 50_000)}, {"about": np.array("[]")}, {"about": np.array(3)}, {"count": np.array("x")},
        {"count": np.array(-5)}, {"count": np.array([1, 2])}, {"about": np.array(json.dumps({"name": "\x1b[2J"}))},
    ):  # fmt: skip
        changed = {**whole, **changes}
        np.savez(tmp_path / "a.npz", **changed | {"sha256": np.array(_digest(changed))})
        with pytest.raises(UserError, match="its count or description is invalid"):
            load_statistics(tmp_path / "a.npz")

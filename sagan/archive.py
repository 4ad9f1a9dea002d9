"""Arrays in .npz archives that may be hostile: nothing is unpickled, nothing unpacked to disk, no claim is believed.

A member is read by its key, so names such as ../x or /x reach no file system.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from sagan.errors import UserError

LARGEST_TABLE = 1 << 30  # bytes of an array that is read whole
EXPANSION = 200  # times its packed size: an array that is read whole and says more is taken for a bomb, if it is LARGE
LARGE = 1 << 26  # bytes
POSSIBLE = 1100  # times its packed size is more than deflate can reach


@dataclass(frozen=True)
class Member:
    """An array of the archive as its header describes it, before its data is read."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # where the data begin

    @classmethod
    def of(cls, archive: zipfile.ZipFile, path: Path, key: str) -> "Member":
        """UserError for an array of Python objects or in Fortran order, and where the header contradicts the file."""
        with archive.open(f"{key}.npy") as stream:
            shape, fortran_order, dtype = _read_header(stream, path, key)
            member = cls(key, shape, dtype, stream.tell())
        if dtype.hasobject:
            raise UserError(f"{path}: {key} holds Python objects, which are not read; save a plain array")
        if fortran_order and len(shape) > 1:
            raise UserError(f"{path}: {key} is stored in Fortran order; save np.ascontiguousarray({key})")
        size = archive.getinfo(f"{key}.npy").file_size
        if min(shape, default=0) < 0 or member.offset + math.prod(shape) * dtype.itemsize != size:
            raise UserError(f"{path}: {key} claims shape {shape} {dtype}, which does not fit its {size} bytes")
        if size > POSSIBLE * _stored(archive, path, key) + LARGE:
            raise UserError(f"{path}: {key} claims {size} bytes, more than can be packed into this file")
        return member


def check_expansion(archive: zipfile.ZipFile, path: Path, key: str) -> None:
    """UserError for a large member that would unpack to far more than its bytes: who reads it whole calls this."""
    size, stored = archive.getinfo(f"{key}.npy").file_size, _stored(archive, path, key)
    if size > max(LARGE, EXPANSION * stored):
        raise UserError(
            f"{path}: {key} would unpack from {stored} bytes to {size}, which is taken for a trap; save it by np.savez"
        )


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open archive; what a damaged one raises, now or while it is read, becomes a UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # of damaged bytes anything may come
        raise UserError(f"{path}: not readable as .npz ({error})") from None


def read_table(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """An array of the archive, whole."""
    member = Member.of(archive, path, key)
    check_expansion(archive, path, key)
    if math.prod(member.shape) * member.dtype.itemsize > LARGEST_TABLE:
        raise UserError(f"{path}: {key} has {member.shape} {member.dtype}, more than this table can need")
    with archive.open(f"{key}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_arrays(path: Path, keys: Sequence[str], most: int | None = LARGEST_TABLE) -> dict[str, np.ndarray]:
    """Arrays of an archive by their keys; `most`: bytes that each may have. ValueError, of any damage, without `path`.

    UserError for a member that would unpack to far more than its bytes.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for key in keys:
                size = archive.getinfo(f"{key}.npy").file_size
                if most is not None and size > most:
                    raise ValueError(f"{key} says to hold {size} bytes")
                check_expansion(archive, path, key)
                with archive.open(f"{key}.npy") as stream:
                    found[key] = np.lib.format.read_array(stream, allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # of damaged bytes anything may come
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    return found


def member_names(path: Path) -> frozenset[str]:
    """Names of the arrays of an .npz; empty for any other file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # of damaged bytes anything may come
        return frozenset()


def _stored(archive: zipfile.ZipFile, path: Path, key: str) -> int:
    """Bytes that a member takes in the file, whatever the archive says."""
    return min(archive.getinfo(f"{key}.npy").compress_size, path.stat().st_size)


def _read_header(stream: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = readers[version](stream)
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # of damaged bytes anything may come
        raise UserError(f"{path}: {key} is not a NumPy array ({' '.join(str(error).split())[:100]})") from None
    return shape, fortran_order, dtype

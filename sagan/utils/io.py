"""Files that are whole or absent: written beside their place under a temporary name, then renamed."""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sagan.utils.errors import UserError

TEMPORARY = ".partial-"
LARGEST_TEXT = 1 << 24  # bytes of a JSON file; what we write stays far below


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    When the block fails the temporary file is removed and what stood at `path` is untouched.
    """
    path = Path(path)
    temporary = _beside(path)
    make_folder(path.parent)
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block succeeds."""
    path = Path(path)
    make_folder(path.parent)
    temporary = _beside(path)
    make_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if path.exists():
            retired = _beside(path, "old-")
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves none of its parts under its name."""
    retired = _beside(path, "old-")
    os.replace(path, retired)
    shutil.rmtree(retired)


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_text(path: Path | str, most: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a file; UserError when it holds more than `most` bytes, UnicodeDecodeError for another kind."""
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: holds more than {most >> 10} KiB of text, none of ours does; is it the right file?")
    return content.decode()


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a damaged one is a UserError that names it."""
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None


def expand_home(path: Path | str) -> Path:
    """`path` with ~ and ~NAME as home folders; UserError for a name that this machine does not know."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user here, so no such home folder; write the path out") from None


def append_json_line(path: Path | str, record: dict[str, Any]) -> None:
    """Append one JSON object as one line, in one write. UserError for a link, which could lead to any file of yours."""
    make_folder(Path(path).parent)
    try:
        with open(path, "a", opener=_no_link) as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a link, nothing is written through it; put a file in its place") from None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def make_folder(path: Path | str) -> Path:
    """Create a folder with its parents; one that cannot be made is a UserError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path}: is a file, a folder was expected") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to create this folder") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: cannot be created, its parent is not a folder") from None
    return Path(path)


def check_file_place(path: Path) -> None:
    """UserError where no file can be written to `path`: a folder is there, or none that may be written to."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    _check_parents(path)


def check_folder_place(path: Path) -> None:
    """UserError where `path` cannot be a folder with files of ours: a file is there, or no permission to write."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, a folder was expected")
    _check_parents(path / "file")


def _check_parents(path: Path) -> None:
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{path}: cannot be written, {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: no permission to write in {nearest}")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(path: Path, mark: str = "") -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{mark}{path.name}")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


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

"""Atomic files and folders, JSON, and .npz archives from outside.

Files are written beside their place under a temporary name, then renamed, so that they are whole or absent.
"""

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
from typing import Any

import numpy as np

from sagan.utils.errors import UserError

TEMPORARY = ".partial-"
LARGEST_TEXT = 1 << 24  # bytes of a JSON file; our own are far smaller


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    When the block fails, the temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    temporary = _beside(path)
    make_folder(path.parent)
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` when the block succeeds."""
    path = Path(path)
    make_folder(path.parent)
    temporary = make_folder(_beside(path))
    try:
        yield temporary
        for place in (*temporary.rglob("*"), temporary):
            _flush_to_disk(place)
        retired = _beside(path, "old-")
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder; an interruption leaves no incomplete folder under its name."""
    retired = _beside(path, "old-")
    os.replace(path, retired)
    shutil.rmtree(retired)


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_text(path: str | os.PathLike[str], most: int = LARGEST_TEXT) -> str:
    """Read a UTF-8 file. Raises UserError if it holds more than `most` bytes, UnicodeDecodeError if it is not UTF-8."""
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: holds more than {most >> 10} KiB of text; is it the right file?")
    return content.decode()


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises UserError if it is damaged."""
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None


def append_json_line(path: Path | str, record: dict[str, Any]) -> None:
    """Append one JSON object as one line, in one write. Raises UserError for a link, which may lead to any file."""
    make_folder(Path(path).parent)
    try:
        with open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a link, nothing is written through it; put a file in its place") from None


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Replace ~ and ~NAME by home folders. Raises UserError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user; write the path out") from None


def make_folder(path: Path | str) -> Path:
    """Create a folder with its parents. Raises UserError if that is impossible."""
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
    """Raise UserError if no file can be written at `path`."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    _check_writable(path, path.absolute().parent)


def check_folder_place(path: Path) -> None:
    """Raise UserError if `path` cannot be a folder to write into."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, a folder was expected")
    _check_writable(path, path.absolute())


def _check_writable(path: Path, folder: Path) -> None:
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{path}: cannot be written, {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: no permission to write in {nearest}")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(path: Path, mark: str = "") -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{mark}{path.name}")


def _flush_to_disk(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LARGEST_TABLE = 1 << 30  # bytes of an array that is read whole
EXPANSION = 200  # a LARGE array of more than this times its packed size is taken for a decompression bomb
LARGE = 1 << 26  # bytes
POSSIBLE = 1100  # times its packed size; deflate cannot reach it


@dataclass(frozen=True)
class Member:
    """Header of an array in an archive, read before its data."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # of the data

    @classmethod
    def of(cls, archive: zipfile.ZipFile, path: Path, key: str) -> "Member":
        """Raises UserError for Python objects, Fortran order, and a header that contradicts the file."""
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        with archive.open(f"{key}.npy") as stream:
            try:
                shape, fortran_order, dtype = readers[np.lib.format.read_magic(stream)](stream)
            except zipfile.BadZipFile:
                raise
            except Exception as error:  # damaged bytes raise anything
                raise UserError(f"{path}: {key} is not a NumPy array ({' '.join(str(error).split())[:100]})") from None
            member = cls(key, shape, dtype, stream.tell())
        if dtype.hasobject:
            raise UserError(f"{path}: {key} holds Python objects, which are not read; save a plain array")
        if fortran_order and len(shape) > 1:
            raise UserError(f"{path}: {key} is stored in Fortran order; save np.ascontiguousarray({key})")
        size, stored = _sizes(archive, path, key)
        if min(shape, default=0) < 0 or member.offset + math.prod(shape) * dtype.itemsize != size:
            raise UserError(f"{path}: {key} claims shape {shape} {dtype}, which does not fit its {size} bytes")
        if size > POSSIBLE * stored + LARGE:
            raise UserError(f"{path}: {key} claims {size} bytes, more than can be packed into this file")
        return member


def check_expansion(archive: zipfile.ZipFile, path: Path, key: str) -> None:
    """Raise UserError for a decompression bomb. To be called before a member is read whole."""
    size, stored = _sizes(archive, path, key)
    if size > max(LARGE, EXPANSION * stored):
        raise UserError(
            f"{path}: {key} would unpack from {stored} bytes to {size}, which suggests a decompression bomb; save it "
            "with np.savez"
        )


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; any error of damaged bytes, now or while it is read, becomes a UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path}: not readable as .npz ({error})") from None


def read_table(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """Read an array whole, after checking its header."""
    Member.of(archive, path, key)
    return _read_whole(archive, path, key, LARGEST_TABLE)


def read_arrays(path: Path, keys: Sequence[str], most: int | None = LARGEST_TABLE) -> dict[str, np.ndarray]:
    """Read arrays of an archive, each of at most `most` bytes (None: any).

    Raises ValueError, whose message lacks `path`, for any damage, and UserError for a decompression bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {key: _read_whole(archive, path, key, most) for key in keys}
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise anything
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _read_whole(archive: zipfile.ZipFile, path: Path, key: str, most: int | None) -> np.ndarray:
    size, _ = _sizes(archive, path, key)
    if most is not None and size > most:
        raise UserError(f"{path}: {key} has {size} bytes, more than this table can need")
    check_expansion(archive, path, key)
    with archive.open(f"{key}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def member_names(path: Path) -> frozenset[str]:
    """Names of the arrays of an .npz; empty for any other file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # damaged bytes raise anything
        return frozenset()


def _sizes(archive: zipfile.ZipFile, path: Path, key: str) -> tuple[int, int]:
    """Bytes of a member unpacked, as the archive claims, and packed: at most those of the file."""
    about = archive.getinfo(f"{key}.npy")
    return about.file_size, min(about.compress_size, path.stat().st_size)

"""Files that are whole or absent: written beside their place under a temporary name, then renamed."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagan.errors import UserError

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

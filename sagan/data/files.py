"""Named files of a folder or an archive, read in place and without trust: nothing is unpacked to disk."""

import hashlib
import os
import re
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from sagan.utils.errors import UserError
from sagan.utils.io import EXPANSION, LARGE, read_text

HEIF = frozenset({".heic", ".heif", ".hif"})
SUFFIXES = HEIF | {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNREAD = frozenset({  # suffixes of images too, but not read
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".ico", ".icns", ".j2k", ".jp2",
    ".jpe", ".jxl", ".jxr", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".ps", ".psd", ".raf", ".raw",
    ".rw2", ".svg", ".tga", ".wmf", ".xcf",
})  # fmt: skip
DEEPEST = 32  # levels of folders to search
LARGEST_LABELS = 1 << 28  # bytes of a file of labels

Place = str | Callable[[], BytesIO]  # the path of a file, or a function, for any thread, that reads it


class Problem(NamedTuple):
    """Something in a source that cannot be used. `kind`: a key of `report.UNUSABLE`."""

    kind: str
    name: str
    reason: str


def printable(name: str) -> str:
    """Escape control characters and broken encodings in a file name."""
    return name if name.isprintable() else ascii(name)[1:-1]


def shared_folder(paths: Iterable[str]) -> str:
    """The deepest folder around all paths, with its "/"; "" for none."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths] or [""])
    return f"{folder}/" if folder else ""


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class Files(ABC):
    """The files below `root`, but hidden ones.

    Attributes:
        names: paths relative to the root, with "/", sorted by their parts.
        folders: paths of all folders, with those that are empty.
        problems: what was found and cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.names, self.folders, self.problems = root, list[str](), set[str](), list[Problem]()

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the images change."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Place]]:
        """The files at `indices` of `names`. Call it once at a time, from one thread."""

    def outer(self) -> str:
        """The folder around all files, with its "/", that a layout does not count; "" for none."""
        return ""

    def text(self, index: int) -> str:
        """A file as text. Raises UserError if it is too large, no regular file or not UTF-8."""
        name = f"{self.root / self.names[index]}"
        ((_, place),) = self.read([index])
        try:
            if isinstance(place, str):
                if not os.path.isfile(place):  # opening a pipe would wait forever
                    raise UserError(f"{name}: is no regular file")
                return read_text(place, LARGEST_LABELS)
            return place().getvalue().decode()
        except UnicodeDecodeError:
            raise UserError(f"{name}: is not UTF-8 text") from None

    def _refuse(self, kind: str, name: str, reason: str) -> None:
        self.problems.append(Problem(kind, printable(name)[:200], reason))


class Folder(Files):
    """Links are followed if they stay below the root, those to folders only at the top."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.resolve())
        self._digest = hashlib.sha256()
        self._walk("")

    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Place]]:
        yield from ((index, f"{self.root}/{self.names[index]}") for index in indices)

    def _walk(self, folder: str) -> None:
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except PermissionError:
            place = printable(os.path.join(self.root, folder))
            raise UserError(f"{place}: no permission to read this folder") from None
        for entry in visible:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink() and not self._contains(entry.path):
                self._refuse("outside", path, "a link that leaves the data folder")
            elif entry.is_dir():
                if path.count("/") > DEEPEST:
                    self._refuse("nested", path, f"lies over {DEEPEST} folders deep")
                elif not folder or not entry.is_symlink():  # links below the top could lead to their own parents
                    self.folders.add(path)
                    self._walk(path)
            elif suffix(path) not in SUFFIXES or self._is_file(path, entry):
                self.names.append(path)

    def _contains(self, link: str) -> bool:
        """Whether the target of a link is below the root; links in a circle have no target."""
        try:
            return Path(link).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def _is_file(self, path: str, entry: os.DirEntry[str]) -> bool:
        try:
            about = entry.stat()
        except OSError as error:
            self._refuse("undecodable", path, error.strerror or "not readable")
            return False
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait forever
            self._refuse("undecodable", path, "a pipe, a socket or a device, no file")
            return False
        self._digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), about.st_size, about.st_mtime_ns))
        return True


class Archive(Files):
    """Of two members of one name, the last one counts; links are refused. `places`: where the `names` are."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._found: dict[str, Any] = {}
        self._list()
        self.names = sorted(self._found, key=lambda name: name.split("/"))
        self.places = [self._found.pop(name) for name in self.names]

    def fingerprint(self) -> str:
        about = self.root.stat()
        return f"{about.st_size} {about.st_mtime_ns}"

    def outer(self) -> str:
        return shared_folder(self.names)

    @abstractmethod
    def _list(self) -> None:
        """Call `_add` for every member. Raises UserError for a damaged archive."""

    def _add(self, name: str, place: Any, is_folder: bool, fault: tuple[str, str] | None) -> None:
        """Add a member, unless it is hidden or has a `fault`: the kind of problem and the reason."""
        path = name.replace("\\", "/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts or any(re.fullmatch("[A-Za-z]:", part) for part in parts[:1]):
            fault = "unsafe", "its name leads out of the archive"
        elif not parts or "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            return None
        elif len(parts) > DEEPEST + 1:
            fault = "nested", f"lies over {DEEPEST} folders deep"
        if fault is not None:
            return self._refuse(fault[0], name, fault[1])
        path = "/".join(parts)
        if not is_folder:
            self._found[path] = place
        above = path if is_folder else path.rpartition("/")[0]
        while above and above not in self.folders:
            self.folders.add(above)
            above = above.rpartition("/")[0]
        return None


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Make any error of damaged bytes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: damaged or no archive ({reason})") from None


def _bomb(size: int, stored: int) -> tuple[str, str] | None:
    """A fault for a member that unpacks to far more bytes than an image can."""
    if size <= max(LARGE, EXPANSION * stored):
        return None
    return "huge", f"would unpack from {stored} bytes to {size}, which is taken for a trap"


class Zip(Archive):
    """A .zip, stored or deflated."""

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Place]]:
        yield from ((index, partial(self._member, self.places[index])) for index in indices)

    def _member(self, info: zipfile.ZipInfo) -> BytesIO:
        with self._zip.open(info) as stream:
            return BytesIO(stream.read(info.file_size))  # read() alone would unpack more than is claimed

    def _list(self) -> None:
        with _intact(self.root):
            self._zip, packed = zipfile.ZipFile(self.root), self.root.stat().st_size  # open as long as this object
            for info in self._zip.infolist():
                fault = _bomb(info.file_size, min(info.compress_size, packed))
                if stat.S_ISLNK(info.external_attr >> 16):
                    fault = "unsafe", "a link in an archive"
                elif info.flag_bits & 1:
                    fault = "undecodable", "is encrypted"
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    fault = "undecodable", "is packed by a rare method; pack it with deflate"
                self._add(info.filename, info, info.is_dir(), fault)


def open_files(path: Path) -> Files:
    """The files of a folder or a .zip. Raises UserError for anything else."""
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return Zip(path.resolve())
    hint = "unpack it and give the folder" if path.suffix.lower() in {".tar", ".gz", ".tgz"} else "give a folder"
    raise UserError(f"{path}: a file that is no .npz or .zip; {hint}")

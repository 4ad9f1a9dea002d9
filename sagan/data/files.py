"""Named files of a folder or an archive, read in place: nothing is unpacked to disk. They are not trusted."""

import gzip
import hashlib
import itertools
import os
import re
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from PIL import Image

from sagan.utils.errors import UserError
from sagan.utils.io import EXPANSION, LARGE, read_text

HEIF = frozenset({".heic", ".heif", ".hif"})
SUFFIXES = HEIF | {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNREAD = frozenset({  # suffixes of images too, but not read
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".ico", ".icns", ".j2k", ".jp2",
    ".jpe", ".jxl", ".jxr", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".ps", ".psd", ".raf", ".raw",
    ".rw2", ".svg", ".tga", ".wmf", ".xcf",
})  # fmt: skip
# The only decoders, with HEIF where it is installed, that may open a file: others, such as EPS, may start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DEEPEST = 32  # levels of folders to search
LARGEST_LABELS = 1 << 28  # bytes of a file of labels
LARGEST_MEMBER = 1 << 30  # bytes of a member of an archive, which is read whole
LARGEST_HEADER = 1 << 20
SIDES = (".cls", ".json", ".txt")  # files with the label of a WebDataset sample, by preference

Place = str | Callable[[], BytesIO]  # the path of a file, or a function, for any thread, that reads it


class Problem(NamedTuple):
    """Something in a source that cannot be used. `kind`: a key of `report.UNUSABLE`."""

    kind: str
    name: str
    reason: str


def printable(name: str) -> str:
    """Escape control characters and broken encodings in a file name."""
    return name if name.isprintable() else ascii(name)[1:-1]


def few(names: Iterable[str]) -> str:
    shown = [printable(name)[:200] for name in names]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def shared_folder(paths: Iterable[str]) -> str:
    """The deepest folder around all paths, with its "/"; "" for none."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths] or [""])
    return f"{folder}/" if folder else ""


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


@cache
def heif_opens() -> bool:
    """Let Pillow open HEIF. False without pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def open_image(place: Place, label: int) -> tuple[Image.Image, int]:
    """An image, not yet decoded, and its label."""
    formats = (*FORMATS, "HEIF") if heif_opens() else FORMATS
    return Image.open(place if isinstance(place, str) else place(), formats=formats), label


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
        """The files at `indices` of `names`: in this order or, from shards and gzip, that of the archive."""

    def inner(self) -> tuple[Path, dict[int, str], list[str]]:
        """The folder that a layout starts from, and below it the paths of the files, by index, and of the folders."""
        return self.root, dict(enumerate(self.names)), list(self.folders)

    def texts(self, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Files as text. Raises UserError for one that is too large, not a regular file or not UTF-8."""
        for index, place in self.read(indices):
            name = f"{self.root / self.names[index]}"
            try:
                if not isinstance(place, str):
                    yield index, place().getvalue().decode()
                elif os.path.isfile(place):  # opening a pipe would wait forever
                    yield index, read_text(place, LARGEST_LABELS)
                else:
                    raise UserError(f"{name}: is not a regular file")
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
                    self._refuse("nested", path, f"is nested more than {DEEPEST} folders deep")
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
            self._refuse("undecodable", path, "a pipe, a socket or a device instead of a file")
            return False
        self._digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), about.st_size, about.st_mtime_ns))
        return True


class Archive(Files):
    """Of two members of one name, the last one counts; links are refused.

    Attributes:
        places: where the files of `names` are.
        inside: the folder, in that around all files, where a layout starts; "" for the latter.
    """

    def __init__(self, root: Path, inside: str = "") -> None:
        super().__init__(root)
        self.inside, self._found = inside, dict[str, Any]()
        self._list()
        self.names = sorted(self._found, key=lambda name: name.split("/"))
        self.places = [self._found.pop(name) for name in self.names]

    def fingerprint(self) -> str:
        about = self.root.stat()
        return f"{about.st_size} {about.st_mtime_ns}"

    def inner(self) -> tuple[Path, dict[int, str], list[str]]:
        plain = self._plain()
        outer = shared_folder(plain) + (f"{self.inside}/" if self.inside else "")
        paths = {index: name[len(outer) :] for index, name in enumerate(plain) if name.startswith(outer)}
        if plain and not paths:
            raise UserError(f"{self.root}: holds no folder {self.inside}")
        folders = [folder[len(outer) :] for folder in self.folders if folder.startswith(outer)]
        return self.root.with_suffix("") / outer, paths, folders

    def _plain(self) -> list[str]:
        """`names` as they count for a layout."""
        return self.names

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
            fault = "nested", f"is nested more than {DEEPEST} folders deep"
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


def _bomb(name: str, size: int, stored: int) -> tuple[str, str] | None:
    """A fault for a member that is read and unpacks to far more bytes than an image or a table can."""
    if size <= min(max(LARGE, EXPANSION * stored), LARGEST_MEMBER) or suffix(name) not in SUFFIXES | {*SIDES}:
        return None
    return "huge", f"would unpack from {stored} bytes to {size}, which suggests a decompression bomb"


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
                fault = _bomb(info.filename, info.file_size, min(info.compress_size, packed))
                if stat.S_ISLNK(info.external_attr >> 16):
                    fault = "unsafe", "a link in an archive"
                elif info.flag_bits & 1:
                    fault = "undecodable", "is encrypted"
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    fault = "undecodable", "uses an unsupported compression method; use deflate"
                self._add(info.filename, info, info.is_dir(), fault)


class _Headers:
    """What tarfile may read of a .tar: blocks of headers, not one that claims to have gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._file, self.last = file.seek, file.tell, file, b""

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._file.read(size)
        return self.last


class Tar(Archive):
    """A .tar, plain or gzipped. Of the latter, `read` takes the order of the archive."""

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Place]]:
        if not self._gzipped:
            yield from ((index, partial(_part, self.root, *self.places[index])) for index in indices)
            return
        with _intact(self.root), self._open() as file:
            for index in sorted(indices, key=lambda index: self.places[index]):
                offset, size = self.places[index]
                file.seek(offset)
                yield index, partial(BytesIO, file.read(size))

    def _open(self) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(self.root)) if self._gzipped else open(self.root, "rb")

    def _list(self) -> None:
        with open(self.root, "rb") as file:
            self._gzipped = file.read(2) == b"\x1f\x8b"
        stored = self.root.stat().st_size
        with _intact(self.root), self._open() as file:
            headers = _Headers(file)
            with tarfile.open(fileobj=cast(Any, headers), mode="r:") as tar:
                while member := tar.next():
                    cast(Any, tar).members.clear()  # which would grow with every member
                    end = member.offset_data + member.size
                    if end > (max(LARGE, EXPANSION * stored) if self._gzipped else stored):
                        raise UserError(f"{self.root}: claims {end} bytes in {stored}; it is truncated or malicious")
                    place = member.offset_data, member.size
                    self._add(member.name, place, member.isdir(), _tar_fault(member))
            if headers.last.strip(b"\0") or len(headers.last) < tarfile.BLOCKSIZE:
                raise UserError(f"{self.root}: damaged or no archive (it ends within a member)")
            file.read(LARGEST_HEADER)  # to the checksum of gzip


def _tar_fault(member: tarfile.TarInfo) -> tuple[str, str] | None:
    if member.issym() or member.islnk():
        return "unsafe", "a link in an archive"
    if not (member.isdir() or member.isreg()) or member.issparse():
        return "undecodable", "a pipe, a device or a sparse file"
    return _bomb(member.name, member.size, member.size)


def _part(path: Path, offset: int, size: int) -> BytesIO:
    with open(path, "rb") as file:
        file.seek(offset)
        return BytesIO(file.read(size))


class Shards(Archive):
    """Numbered archives in one, as `shards-{000..127}.tar`; names start with that of their shard."""

    def _list(self) -> None:
        match = re.fullmatch(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*\.(?:tar|tgz|tar\.gz))", self.root.name)
        if match is None or not 0 <= int(match[3]) - int(match[2]) < 10**6:
            raise UserError(f"{self.root}: expected shards as shards-{{000..127}}.tar")
        numbers = range(int(match[2]), int(match[3]) + 1)
        paths = [self.root.with_name(f"{match[1]}{number:0{len(match[2])}}{match[4]}") for number in numbers]
        if gone := [path.name for path in paths if not path.is_file()]:
            raise UserError(f"{self.root}: {len(gone)} of its {len(paths)} shards do not exist: {', '.join(gone[:3])}")
        self._shards = [Tar(path) for path in paths]
        for number, shard in enumerate(self._shards):
            self._found |= {f"{shard.root.name}/{name}": (number, index) for index, name in enumerate(shard.names)}
            self.folders |= shard.folders
            problems = [problem._replace(name=f"{shard.root.name}/{problem.name}") for problem in shard.problems]
            self.problems += problems

    def fingerprint(self) -> str:
        return " ".join(shard.fingerprint() for shard in self._shards)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Place]]:
        indices = sorted(indices, key=lambda index: self.places[index][0])
        for number, group in itertools.groupby(indices, key=lambda index: self.places[index][0]):
            own = {self.places[index][1]: index for index in group}
            yield from ((own[index], place) for index, place in self._shards[number].read(list(own)))

    def _plain(self) -> list[str]:
        return [name.partition("/")[2] for name in self.names]


def open_files(path: Path) -> Files:
    """The files of a folder, a .zip, a .tar, shards, or of a folder in an archive. Raises UserError for others."""
    if path.is_dir():
        return Folder(path)
    if "{" in path.name:
        return Shards(path.absolute())
    for archive in (path, *path.parents):
        if archive.is_file():
            inside = path.relative_to(archive).as_posix()
            for end, kind in ((".zip", Zip), (".tar", Tar), (".tar.gz", Tar), (".tgz", Tar)):
                if archive.name.lower().endswith(end):
                    return kind(archive.resolve(), "" if inside == "." else inside)
            raise UserError(f"{path}: not an .npz, .zip, .tar or .tar.gz file; give one of these or a folder")
    raise UserError(f"{path}: no such folder or file (nor `shapes`, `pairs` or `torchvision:NAME`)")

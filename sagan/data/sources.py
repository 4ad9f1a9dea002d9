"""Sources of images: folders, .npz archives, torchvision data sets, and the embedded shapes."""

import contextlib
import hashlib
import itertools
import math
import os
import stat
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sagan.data.shapes import CLASSES, render
from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import Member, check_expansion, expand_home, open_archive, read_table

# The only decoders that may open a file: others, such as EPS, may start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Item:
    """An image of a source. `read`, called in any thread, returns the image, perhaps not yet decoded, and its label."""

    name: str
    read: Callable[[], tuple[Image.Image, int]]


class Problem(NamedTuple):
    """Something in a source that cannot be used. `kind`: a key of `report.UNUSABLE`."""

    kind: str
    name: str
    reason: str


class Source(ABC):
    """Images that are not prepared yet.

    Attributes:
        name: used in messages and the manifest; not a path of this machine.
        num_classes: 0 for images without labels.
        root: the folder of the images, if there is one.
        problems: unusable items found before reading any image; `items` skips them.
        ignored: names of files that are not images.
    """

    name: str
    num_classes: int
    root: Path | None = None
    problems: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the images change."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """One name per label; () without labels."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """The images in order. Call it once, from one thread."""


def cache_folder() -> Path:
    """Folder for downloads and automatically prepared data."""
    return Path.home() / ".cache" / "sagan"


def printable(name: str) -> str:
    """Escape control characters and broken encodings in a file name."""
    return name if name.isprintable() else ascii(name)[1:-1]


SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
DEEPEST = 32  # levels of folders to search
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})


class FolderSource(Source):
    """A folder of images or of class folders. Raises UserError if it has no images or its layout is ambiguous."""

    def __init__(self, root: Path) -> None:
        tree = _Tree(root.resolve())
        self.root = tree.root
        parts = tree.root.parts[-2:] if tree.root.name.lower() in SPLITS else tree.root.parts[-1:]
        self.name = printable("/".join(parts))
        self._classes = _classes(root, tree)
        self.num_classes = len(self._classes)
        nested = [path for folder, paths in tree.images.items() if "/" in folder for path in paths]
        empty = [name for name in self._classes if not tree.images.get(name)]
        self.problems = (
            *tree.problems,
            *(Problem("nested", printable(path), "lies deeper than the class folders") for path in nested),
            *(Problem("empty_class", printable(name), "a class folder without an image") for name in empty),
        )
        self.ignored = tuple(map(printable, tree.ignored))
        self._fingerprint = tree.digest.hexdigest()
        self._paths = [(path, i) for i, name in enumerate(self._classes or [""]) for path in tree.images.get(name, [])]

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self) -> str:
        return self._fingerprint

    def class_names(self) -> tuple[str, ...]:
        return tuple(map(printable, self._classes))

    def items(self) -> Iterator[Item]:
        for path, label in self._paths:
            yield Item(printable(path), partial(_open, f"{self.root}/{path}", label))


class _Tree:
    """Files below `root`. `images`: paths relative to the root, by folder ("" for the root itself, "a/b" below)."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.digest = root, dict[str, list[str]](), hashlib.sha256()
        self.folders, self.ignored, self.problems = list[str](), list[str](), list[Problem]()  # top-level folders
        self._walk("")

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
                    self._refuse("nested", path[:200], f"lies over {DEEPEST} folders deep")
                elif not folder or not entry.is_symlink():  # links below the top could lead to their own parents
                    self.folders += [] if folder else [entry.name]
                    self._walk(path)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                self._add_image(folder, path, entry)
            else:
                self.ignored.append(path)

    def _contains(self, link: str) -> bool:
        """Whether the target of a link is below the root; links in a circle have no target."""
        try:
            return Path(link).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def _add_image(self, folder: str, path: str, entry: os.DirEntry[str]) -> None:
        try:
            about = entry.stat()
        except OSError as error:
            return self._refuse("undecodable", path, error.strerror or "not readable")
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait forever
            return self._refuse("undecodable", path, "a pipe, a socket or a device, no file")
        self.digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), about.st_size, about.st_mtime_ns))
        self.images.setdefault(folder, []).append(path)
        return None

    def _refuse(self, kind: str, path: str, reason: str) -> None:
        self.problems.append(Problem(kind, printable(path)[:200], reason))


def _classes(root: Path, tree: _Tree) -> list[str]:
    """The class folders, sorted; [] for a flat folder. Raises UserError for other layouts."""
    with_images = [name for name in tree.folders if tree.images.get(name)]
    nested = sorted({folder.rpartition("/")[0] for folder in tree.images if "/" in folder})
    if not tree.images:
        known, others = ", ".join(sorted(SUFFIXES)), tree.ignored
        found = f" (but {len(others)} other files: {_few(others)})" if others else ""
        problem = f"holds no image{found}; images end in {known}"
        if tree.problems:
            problem = f"holds no usable image; {tree.problems[0].name}: {tree.problems[0].reason}"
    elif "" in tree.images:
        if not with_images and not nested:
            return []
        problem = (
            f"holds images ({_few(tree.images[''])}) beside folders with images ({_few(with_images or nested)}); "
            "give either class folders or images alone"
        )
    elif not with_images:
        choice = " or ".join(str(root / name) for name in nested[:3])
        problem = f"its class folders lie deeper than one level; the source to give is {choice}"
    elif len(with_images) == 1 and not nested:
        only = with_images[0]
        problem = (
            f"holds one class folder only, {only}; to train without labels give {root / only}, "
            "for classes put each into a folder of its own"
        )
    elif SPLITS.issuperset(name.lower() for name in with_images):
        problem = f"{_few(with_images)} are splits, not classes; give one of them, such as {root / with_images[-1]}"
    else:
        return tree.folders
    raise UserError(f"{root}: {problem}")


def _few(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def _open(path: str, label: int) -> tuple[Image.Image, int]:
    return Image.open(path, formats=FORMATS), label


NPZ_KEYS = ("images", "arr_0"), ("labels", "arr_1")


class NpzSource(Source):
    """An archive of `images` (or `arr_0`): uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W); optionally with `labels` (or
    `arr_1`): integers (N,), and `class_names`: strings (K,). Raises UserError for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, printable(path.name)
        with open_archive(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            image_key, label_key = (next((key for key in keys if key in members), None) for keys in NPZ_KEYS)
            if image_key is None:
                raise UserError(f"{path}: holds no array `images`, only {', '.join(sorted(members)[:5]) or 'nothing'}")
            self._images = Member.of(archive, path, image_key)
            _check_images(path, self._images)
            self._labels, self._names = np.zeros(len(self), np.int64), ()
            if label_key is not None:
                self._labels = _read_labels(archive, path, label_key, len(self))
                self._names = tuple(map(str, range(int(self._labels.max()) + 1)))
                if "class_names" in members:
                    self._names = _read_names(archive, path, len(self._names))
        self.num_classes = len(self._names)
        empty = sorted(set(range(self.num_classes)) - set(np.unique(self._labels).tolist()))
        self.problems = tuple(Problem("empty_class", self._names[i], "no image has this label") for i in empty)
        if self.num_classes == 1 or (self.problems and self.num_classes - len(empty) == 1):
            raise UserError(f"{path}: all labels are the same; leave `labels` out to train without labels")

    def __len__(self) -> int:
        return self._images.shape[0]

    def fingerprint(self) -> str:
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def class_names(self) -> tuple[str, ...]:
        return self._names

    def check_expansion(self) -> None:
        """Raise UserError if the images would not fit into memory when read whole. `items` reads them one by one."""
        with open_archive(self.path) as archive:
            check_expansion(archive, self.path, self._images.key)

    def items(self) -> Iterator[Item]:
        shape = self._images.shape[1:3] if self._images.shape[3:] == (1,) else self._images.shape[1:]
        with open_archive(self.path) as archive, archive.open(f"{self._images.key}.npy") as stream:
            stream.read(self._images.offset)
            for index, label in enumerate(self._labels.tolist()):
                pixels = stream.read(math.prod(shape))
                if len(pixels) < math.prod(shape):
                    raise UserError(f"{self.path}: ends within image {index}")
                yield _in_memory(index, np.frombuffer(pixels, np.uint8).reshape(shape), label)


def _in_memory(index: int, pixels: np.ndarray, label: int) -> Item:
    return Item(f"image {index}", lambda: (Image.fromarray(pixels), label))


def _check_images(path: Path, images: Member) -> None:
    shape = images.shape
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits:
        hint = "; transpose it (0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) and not fits else ""
        raise UserError(f"{path}: {images.key} is {images.dtype} {shape}, expected uint8 (N, H, W, 3){hint}")
    if 0 in shape:
        raise UserError(f"{path}: {images.key} is empty, its shape is {shape}")


def _read_labels(archive: zipfile.ZipFile, path: Path, key: str, count: int) -> np.ndarray:
    labels = read_table(archive, path, key)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {key} is {labels.dtype} {labels.shape}, expected one integer an image: ({count},)")
    if labels.min() < 0 or labels.max() >= count:
        low, high = labels.min(), labels.max()
        raise UserError(f"{path}: {key} go from {low} to {high}; with {count} images, 0 to {count - 1} at most")
    return labels.astype(np.int64)


def _read_names(archive: zipfile.ZipFile, path: Path, num_classes: int) -> tuple[str, ...]:
    names = read_table(archive, path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < num_classes:
        raise UserError(f"{path}: class_names is {names.dtype} {names.shape}, expected {num_classes} strings")
    return tuple(printable(str(name)) for name in names)


@dataclass(frozen=True)
class Entry:
    """A class of torchvision.datasets, and its options, one dict per part to use."""

    dataset: str
    num_classes: int  # 0: no labels
    parts: tuple[dict[str, Any], ...] = field(default=({},))
    downloads: bool = True


KEYS = "_cache_*"
TRAIN, WHOLE = ({"split": "train"},), ({"split": "train"}, {"split": "val"}, {"split": "test"})
SETS = {
    "cifar10": Entry("CIFAR10", 10),
    "cifar100": Entry("CIFAR100", 100),
    "stl10": Entry("STL10", 10, TRAIN),
    "stl10-unlabeled": Entry("STL10", 0, ({"split": "unlabeled"},)),
    "svhn": Entry("SVHN", 10, TRAIN),
    "mnist": Entry("MNIST", 10),
    "fashion-mnist": Entry("FashionMNIST", 10),
    "kmnist": Entry("KMNIST", 10),
    "celeba": Entry("CelebA", 0, ({"split": "all"},)),
    "food101": Entry("Food101", 101, TRAIN),
    "flowers102": Entry("Flowers102", 102, WHOLE),
    "oxford-pets": Entry("OxfordIIITPet", 37, ({"split": "trainval"}, {"split": "test"})),
    "dtd": Entry("DTD", 47, WHOLE),
    "eurosat": Entry("EuroSAT", 10),
    "gtsrb": Entry("GTSRB", 43, TRAIN),
    "fgvc-aircraft": Entry("FGVCAircraft", 100, WHOLE),
    "imagenette": Entry("Imagenette", 10, TRAIN),
    "places365": Entry("Places365", 365, ({"small": True},)),
    "sun397": Entry("SUN397", 397),
    "caltech256": Entry("Caltech256", 257),
    "lsun": Entry("LSUN", 10, ({"classes": "train"},), downloads=False),
    "lsun-bedroom": Entry("LSUN", 0, ({"classes": ["bedroom_train"]},), downloads=False),
    "lsun-church": Entry("LSUN", 0, ({"classes": ["church_outdoor_train"]},), downloads=False),
}


class TorchvisionSource(Source):
    """A data set of `SETS`, downloaded when first used. Raises UserError for an unknown name."""

    def __init__(self, name: str) -> None:
        if name not in SETS:
            raise UserError(f"torchvision:{name}: no such data set; {suggestion(name, SETS)}")
        self.name, self._entry = f"torchvision:{name}", SETS[name]
        self.num_classes = self._entry.num_classes

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def fingerprint(self) -> str:
        return self.name

    def class_names(self) -> tuple[str, ...]:
        numbers = [str(label) for label in range(self.num_classes)]
        return tuple(getattr(self._parts[0], "classes", None) or numbers) if self.num_classes else ()

    def items(self) -> Iterator[Item]:
        number = itertools.count()
        for part in self._parts:
            for index in range(len(part)):
                yield Item(f"image {next(number)}", partial(_read_torchvision, part, index, self.num_classes > 0))

    @cached_property
    def _parts(self) -> list[Any]:
        from torchvision import datasets

        root = cache_folder() / "torchvision"
        make = getattr(datasets, self._entry.dataset)
        download = {"download": True} if self._entry.downloads else {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr), _no_pickled_keys(self._entry):
                return [make(str(root), **options, **download) for options in self._entry.parts]
        except (OSError, RuntimeError, ImportError) as error:
            what = "download" if self._entry.downloads else "find (torchvision does not download it)"
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name}: could not {what} in {root}: {reason}") from None


@contextlib.contextmanager
def _no_pickled_keys(entry: Entry) -> Iterator[None]:
    """Prevent torchvision's LSUN from unpickling files _cache_… of the working folder, and from leaving any."""
    if entry.dataset != "LSUN":
        yield
        return
    if found := next(Path.cwd().glob(KEYS), None):
        raise UserError(f"{found}: torchvision would unpickle this file, which could run any program; remove it")
    try:
        yield
    finally:
        for written in Path.cwd().glob(KEYS):
            written.unlink()


def _read_torchvision(dataset: Any, index: int, labeled: bool) -> tuple[Image.Image, int]:
    image, target = dataset[index]
    return image, int(target) if labeled else 0


DEFAULT_SHAPES = 20_000


def open_source(text: str, resolution: int) -> Source:
    """Open `shapes`, `shapes:COUNT` (rendered at `resolution`), `torchvision:NAME`, an `.npz`, or a folder of images.

    Raises UserError for anything else, and as the sources do.
    """
    kind, _, rest = text.partition(":")
    if kind == "shapes":
        return ShapesSource(rest, resolution)
    if kind == "torchvision":
        return TorchvisionSource(rest)
    path = expand_home(text)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return NpzSource(path)
    if path.is_file():
        packed = path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz"}
        hint = "unpack it and give the folder" if packed else "give a folder"
        raise UserError(f"{text}: a file that is no .npz; {hint}")
    raise UserError(f"{text}: no such folder or file (nor `shapes` or `torchvision:NAME`)")


class ShapesSource(Source):
    """The embedded data set, rendered at `resolution`. Raises UserError for a count that is not positive."""

    def __init__(self, count: str, resolution: int) -> None:
        if count and not (count.isascii() and count.isdigit() and len(count) <= 15 and int(count) > 0):
            raise UserError(f"shapes:{count}: expected shapes:COUNT with a positive number, such as shapes:5000")
        self._count, self._resolution = int(count or DEFAULT_SHAPES), resolution
        self.name, self.num_classes = f"shapes:{self._count}", len(CLASSES)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Of the first renders, so that a change of the renderer shows."""
        first = [item.read()[0].tobytes() for item, _ in zip(self.items(), range(8), strict=False)]
        return f"{self._count} {hashlib.sha256(b''.join(first)).hexdigest()}"

    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def items(self) -> Iterator[Item]:
        for index in range(self._count):
            yield Item(f"image {index}", partial(_render, index, self._resolution))


def _render(index: int, resolution: int) -> tuple[Image.Image, int]:
    pixels, label, _ = render(index, resolution)
    return Image.fromarray(pixels), label

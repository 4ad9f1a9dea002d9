"""Sources of images: folders, archives, .npz files, torchvision data sets, arrays and data sets in memory, shapes."""

import contextlib
import hashlib
import itertools
import math
import os
import re
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sagan.data.files import (
    HEIF,
    SUFFIXES,
    Archive,
    Files,
    Problem,
    Shards,
    Tar,
    few,
    heif_opens,
    open_files,
    open_image,
    printable,
    suffix,
)
from sagan.data.labels import (
    SPLITS,
    STYLEGAN,
    Layout,
    Names,
    class_folders,
    from_rows,
    from_values,
    sample_labels,
    stylegan_rows,
)  # fmt: skip
from sagan.data.shapes import VARIANTS, Variant, render
from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import Member, check_expansion, expand_home, open_archive, read_table


@dataclass(frozen=True)
class Item:
    """An image of a source. `read`, called in any thread, returns the image, perhaps not yet decoded, and its label."""

    name: str
    read: Callable[[], tuple[Image.Image, int]]


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


class FolderSource(Source):
    """Images of a folder or an archive: class folders, images alone, or any folders with a table of labels.

    The table is the file `labels`, with `columns` as in `Names.rows`, or StyleGAN's `dataset.json`. Raises UserError if
    there is no image, or the layout or the table is ambiguous.
    """

    def __init__(self, root: Path, labels: str | None = None, columns: str | None = None) -> None:
        self._files = files = open_files(root)
        self.root, self._fingerprint = files.root, files.fingerprint()
        place = files.root / files.inside if isinstance(files, Archive) else files.root
        self.name = printable("/".join(place.parts[-2:] if place.name.lower() in SPLITS else place.parts[-1:]))
        top, paths, folders = files.inner()
        images = {index: path for index, path in paths.items() if suffix(path) in SUFFIXES}
        if not images:
            raise UserError(f"{root}: {_no_image(files)}")
        used = list[int]()  # files of labels
        if labels:
            names = Names(top, images)
            self._layout = from_rows(images, names, names.rows(labels, columns), labels)
            used = [index for index in paths if self.root / files.names[index] == expand_home(labels).resolve()]
        elif table := stylegan_rows(files, paths):
            used, rows = [table[0]], table[1]
            flat = Layout(dict.fromkeys(images, 0), (), [])
            self._layout = flat if rows is None else from_rows(images, Names(top, images), rows, STYLEGAN)
        elif isinstance(files, Tar | Shards) and (samples := sample_labels(files, images)):
            used, values, where = samples
            self._layout = from_values(images, values, [], where)
        else:
            self._layout = class_folders(root, images, folders)
        if labels or used:
            self._fingerprint += hashlib.sha256(repr(self._layout[:2]).encode()).hexdigest()
        others = sorted(paths.keys() - images.keys() - set(used))
        waiting = [] if heif_opens() else [index for index in images if suffix(images[index]) in HEIF]
        for index in waiting:
            self._layout.labels.pop(index, None)
        needs = [Problem("heif", printable(files.names[index]), "needs pillow-heif") for index in waiting]
        self.num_classes = len(self._layout.classes)
        self.problems = (*files.problems, *self._layout.problems, *needs)
        self.ignored = tuple(printable(files.names[index]) for index in others)

    def __len__(self) -> int:
        return len(self._layout.labels)

    def fingerprint(self) -> str:
        return self._fingerprint

    def class_names(self) -> tuple[str, ...]:
        return self._layout.classes

    def items(self) -> Iterator[Item]:
        labels = self._layout.labels
        for index, place in self._files.read(list(labels)):
            yield Item(printable(self._files.names[index]), partial(open_image, place, labels[index]))


def _no_image(files: Files) -> str:
    if files.problems:
        return f"holds no usable image; {files.problems[0].name}: {files.problems[0].reason}"
    found = f" (but {len(files.names)} other files: {few(files.names)})" if files.names else ""
    return f"holds no readable image{found}; supported suffixes: {', '.join(sorted(SUFFIXES))}"


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
            _check_images(f"{path}: {image_key}", self._images.dtype, self._images.shape)
            self._labels, self._names = np.zeros(len(self), np.int64), ()
            if label_key is not None:
                self._labels = check_labels(f"{path}: {label_key}", read_table(archive, path, label_key), len(self))
                self._names = tuple(map(str, range(int(self._labels.max()) + 1)))
                if "class_names" in members:
                    self._names = _read_names(archive, path, len(self._names))
        self.num_classes = len(self._names)
        self.problems = _empty_classes(str(path), self._labels, self._names)

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


def _check_images(where: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not fits:
        hint = "; transpose it (0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) and not fits else ""
        raise UserError(f"{where} is {dtype} {shape}, expected uint8 (N, H, W, 3){hint}")
    if 0 in shape:
        raise UserError(f"{where} is empty, its shape is {shape}")


def check_labels(where: str, labels: np.ndarray, count: int, classes: int | None = None) -> np.ndarray:
    """The labels as int64 (count,). UserError unless they are integers from 0, below `classes` (None: below count)."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(f"{where} is {labels.dtype} {labels.shape}, expected one integer an image: ({count},)")
    if labels.min() < 0 or labels.max() >= (count if classes is None else classes):
        low, high = labels.min(), labels.max()
        if classes is not None:
            raise UserError(f"{where} go from {low} to {high}; the classes are 0 to {classes - 1}")
        raise UserError(f"{where} go from {low} to {high}; with {count} images, 0 to {count - 1} at most")
    return labels.astype(np.int64)


def _empty_classes(where: str, labels: np.ndarray, names: tuple[str, ...]) -> tuple[Problem, ...]:
    """A problem for each class without an image. UserError if only one class has images."""
    empty = sorted(set(range(len(names))) - set(np.unique(labels).tolist()))
    if len(names) - len(empty) == 1:
        raise UserError(f"{where}: all labels are the same; leave `labels` out to train without labels")
    return tuple(Problem("empty_class", names[i], "no image has this label") for i in empty)


def _read_names(archive: zipfile.ZipFile, path: Path, num_classes: int) -> tuple[str, ...]:
    names = read_table(archive, path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < num_classes:
        raise UserError(f"{path}: class_names is {names.dtype} {names.shape}, expected {num_classes} strings")
    return tuple(printable(str(name)) for name in names)


class MemorySource(Source):
    """Images in memory: an array, a pair (images, labels), or a torch data set of images or (image, label).

    An array is uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W), labels are integers (N,). An image of a data set is one
    of PIL's, uint8 (H, W, 3) or (H, W), or a tensor (C, H, W), uint8 or from 0 to 1. A data set is read twice: here,
    for its labels and its fingerprint, and by `items`. Raises UserError for anything else.
    """

    name = "images in memory"

    def __init__(self, data: Any) -> None:
        images, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        if hasattr(images, "__array__"):
            images = np.asarray(images)
            _check_images("images", images.dtype, images.shape)
        elif labels is not None or not (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
            given = type(images).__name__
            raise UserError(f"data: {given} is neither a path, an array, (images, labels) nor a data set with a length")
        self._images, found, digest = images, [], hashlib.sha256()
        for index in range(len(images)):
            image, label = self._read(index)
            found.append(label)
            digest.update(f"{image.size} {image.mode} {label} ".encode() + image.tobytes())
        if labels is None and found and found[0] is not None:
            labels = np.array(found)
        if not found:
            raise UserError("data: holds no image")
        self._labels, self._names = np.zeros(len(found), np.int64), ()
        if labels is not None:
            self._labels = check_labels("labels", np.asarray(labels), len(found))
            digest.update(self._labels.tobytes())
            count = int(self._labels.max()) + 1
            known = getattr(images, "classes", ())
            names = known[:count] if len(known) >= count else range(count)
            self._names = tuple(printable(str(name)) for name in names)
        self.num_classes, self._fingerprint = len(self._names), digest.hexdigest()
        self.problems = _empty_classes("data", self._labels, self._names) if self._names else ()

    def _read(self, index: int) -> tuple[Image.Image, int | None]:
        item = self._images[index]
        image, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        image = _as_image(image, index)
        try:
            return image, None if label is None else int(label)
        except (TypeError, ValueError):
            raise UserError(f"data: the label of image {index} is {label!r:.40}, expected an integer") from None

    def __len__(self) -> int:
        return len(self._labels)

    def fingerprint(self) -> str:
        return self._fingerprint

    def class_names(self) -> tuple[str, ...]:
        return self._names

    def items(self) -> Iterator[Item]:
        for index, label in enumerate(self._labels.tolist()):
            yield _in_memory(index, np.asarray(self._read(index)[0]), label)


def _as_image(image: Any, index: int) -> Image.Image:
    """An image of PIL from one of PIL, an array (H, W), (H, W, 1) or (H, W, 3), or a tensor (C, H, W)."""
    if isinstance(image, Image.Image):
        return image if image.mode == "L" else image.convert("RGB")
    pixels = np.asarray(image)
    if hasattr(image, "permute"):  # a tensor, as torchvision's ToTensor makes it
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
        if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
            pixels = (255 * pixels).round().astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        span = f" from {pixels.min():.3g} to {pixels.max():.3g}" if pixels.dtype.kind == "f" and pixels.size else ""
        raise UserError(
            f"data: image {index} is {type(image).__name__} {pixels.dtype} {pixels.shape}{span}, expected "
            "one of PIL's, uint8 (H, W, 3), or a tensor (3, H, W), uint8 or from 0 to 1"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


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
            what = "download it to" if self._entry.downloads else "find it (torchvision does not download it) in"
            raise UserError(f"{self.name}: could not {what} {root}: {short_reason(error)}") from None


def short_reason(error: Exception) -> str:
    """An error as one short line: of a failed download, the last cause, without addresses."""
    text = " ".join(str(error).split())
    causes = re.findall(r"<urlopen error (?:\[\w+ ?-?\d*\] )?(.+?)>|(HTTP Error \d+: [\w ]+)", text)
    reason = "".join(causes[-1]) if causes else re.sub(r"\S+://\S+", "…", text)
    return reason[:150] or type(error).__name__


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


def is_saved(path: Path) -> bool:
    """Whether this is a parquet file, or a folder written by `save_to_disk`."""
    folder = path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file())
    return folder or (path.suffix.lower() == ".parquet" and path.is_file())


def open_source(data: Any, resolution: int, labels: str | None = None, columns: str | None = None) -> Source:
    """Open `shapes` or `pairs` (at `resolution`), `torchvision:NAME`, `hf:NAME`, an .npz, a folder or an archive.

    Anything but a text or a path is a `MemorySource`. `labels`, `columns`: see `FolderSource` and `HubSource`. Raises
    UserError for anything else, and as the sources do.
    """
    if not isinstance(data, str | os.PathLike):
        if labels or columns:
            raise UserError("labels: a table of labels is for folders and archives; give data as (images, labels)")
        return MemorySource(data)
    text = os.fspath(data)
    kind, _, rest = text.partition(":")
    path = expand_home(text)
    if kind == "hf" or is_saved(path):
        from sagan.data.hub import HubSource  # it needs an extra

        if labels:
            raise UserError(f"{text}: has its own labels; --columns IMAGE,LABEL names them")
        return HubSource(rest if kind == "hf" else text, columns)
    is_npz = path.is_file() and path.suffix.lower() == ".npz"
    if (labels or columns) and (kind in (*VARIANTS, "torchvision") or is_npz):
        raise UserError(f"{text}: has its own labels; --labels is for folders and archives of images")
    if columns and not labels:
        raise UserError(f"--columns {columns}: names columns of a table of labels; give it by --labels FILE")
    if kind in VARIANTS:
        return ShapesSource(VARIANTS[kind], rest, resolution)
    if kind == "torchvision":
        return TorchvisionSource(rest)
    if is_npz:
        return NpzSource(path)
    return FolderSource(path, labels, columns)


class ShapesSource(Source):
    """An embedded data set, rendered at `resolution`. Raises UserError for a count that is not positive."""

    def __init__(self, variant: Variant, count: str, resolution: int) -> None:
        if count and not (count.isascii() and count.isdigit() and len(count) <= 15 and int(count) > 0):
            name = variant.name
            raise UserError(f"{name}:{count}: expected {name}:COUNT with a positive number, such as {name}:5000")
        self._count, self._resolution, self._variant = int(count or DEFAULT_SHAPES), resolution, variant
        self.name, self.num_classes = f"{variant.name}:{self._count}", len(variant.classes)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Of the first renders, so that a change of the renderer shows."""
        first = [item.read()[0].tobytes() for item, _ in zip(self.items(), range(8), strict=False)]
        return f"{self._count} {hashlib.sha256(b''.join(first)).hexdigest()}"

    def class_names(self) -> tuple[str, ...]:
        return self._variant.classes

    def items(self) -> Iterator[Item]:
        for index in range(self._count):
            yield Item(f"image {index}", partial(_render, index, self._resolution, self._variant))


def _render(index: int, resolution: int, variant: Variant) -> tuple[Image.Image, int]:
    pixels, label, _ = render(index, resolution, variant=variant)
    return Image.fromarray(pixels), label

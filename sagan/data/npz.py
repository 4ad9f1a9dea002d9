"""An .npz with `images` and, if there are labels, `labels` (and `class_names`) as a source.

The file is not trusted: headers are checked before anything is read, pickles are refused, and the images are streamed
one by one, so an archive larger than memory, compressed or not, costs no memory.
"""

import math
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sagan.archive import Member, check_expansion, open_archive, read_table
from sagan.data.source import Item, Problem, Source, printable
from sagan.errors import UserError

IMAGE_KEYS, LABEL_KEYS = ("images", "arr_0"), ("labels", "arr_1")


class NpzSource(Source):
    """`images`: uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W); `labels`: integers (N,); `class_names`: strings (K,).

    `arr_0` and `arr_1` do as well. Raises UserError for anything else, and for a damaged archive.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, printable(path.name)
        with open_archive(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            image_key = next((key for key in IMAGE_KEYS if key in members), None)
            if image_key is None:
                raise UserError(f"{path}: holds no array `images`, only {', '.join(sorted(members)[:5]) or 'nothing'}")
            self._images = Member.of(archive, path, image_key)
            _check_images(path, self._images)
            label_key = next((key for key in LABEL_KEYS if key in members), None)
            self._labels = np.zeros(len(self), np.int64)
            self._names: tuple[str, ...] = ()
            if label_key is not None:
                self._labels = _read_labels(archive, path, label_key, len(self))
                self._names = tuple(map(str, range(int(self._labels.max()) + 1)))
            if label_key is not None and "class_names" in members:
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
        """UserError where the images, read whole and not one by one, would be a trap for memory."""
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
                yield Item(f"image {index}", partial(_read, pixels, shape, label))


def _read(pixels: bytes, shape: tuple[int, ...], label: int) -> tuple[Image.Image, int]:
    return Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape)), label


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
        raise UserError(
            f"{path}: {key} go from {labels.min()} to {labels.max()}; with {count} images, 0 to {count - 1} at most"
        )
    return labels.astype(np.int64)


def _read_names(archive: zipfile.ZipFile, path: Path, num_classes: int) -> tuple[str, ...]:
    names = read_table(archive, path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < num_classes:
        raise UserError(f"{path}: class_names is {names.dtype} {names.shape}, expected {num_classes} strings")
    return tuple(printable(str(name)) for name in names)

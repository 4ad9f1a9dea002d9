"""Images to be measured, read by index, again and again: prepared data, a folder, an .npz, or what a caller draws."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sagan.data.convert import Unusable, decode, look
from sagan.data.dataset import PreparedData
from sagan.data.folder import FolderSource
from sagan.data.npz import NpzSource
from sagan.data.source import Item
from sagan.errors import UserError
from sagan.files import sha256
from sagan.randomness import numpy_generator

SAMPLED = re.compile(r"seed[0-9]{8}(?:_class([0-9]+))?\.png")  # what `sagan sample` writes
SAMPLES_RECORD, SAMPLES_SHEET = "samples.json", "grid.png"
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`count` images of one size.

    Attributes:
        read: indices, int64 (b,) -> uint8 (b, H, W, 3), on any device.
        labels: int64 (count,), or None.
        key: differs between sets of different images.
        name: for people; no path of this machine.
        lossy: whether the images were stored with loss.
    """

    count: int
    size: tuple[int, int]
    read: Callable[[np.ndarray], Tensor]
    key: str
    name: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    lossy: bool = False

    def sample(self, count: int) -> "ImageSet":
        """`count` of these images, always the same ones, without regard to order or class; UserError for too few."""
        if count > self.count:
            raise UserError(f"{self.name}: {count} images were asked for, it holds {self.count}; lower --num")
        if count == self.count:
            return self
        chosen = np.sort(numpy_generator(0, "images of a set").permutation(self.count)[:count])
        return replace(
            self,
            count=count,
            read=lambda indices: self.read(chosen[indices]),
            key=f"{self.key}:{count}",
            labels=None if self.labels is None else self.labels[chosen],
        )


def from_prepared(data: PreparedData) -> ImageSet:
    """The images of a prepared folder."""
    manifest = data.manifest
    return ImageSet(
        count=len(data),
        size=(manifest.resolution, manifest.resolution),
        read=lambda indices: torch.from_numpy(data.gather(indices)[0]),
        key=manifest.content_hash,
        name=manifest.source,
        labels=data.labels if manifest.num_classes else None,
        class_names=manifest.class_names,
    )


def from_files(path: Path) -> ImageSet:
    """The images of a folder or an .npz, at the size they have. UserError for anything else and for mixed sizes."""
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _from_npz(path)
    raise UserError(f"{path}: expected a folder of images or an .npz with `images`")


def _from_folder(path: Path) -> ImageSet:
    source = FolderSource(path)
    if source.problems:
        problem = source.problems[0]
        raise UserError(f"{path}: {problem.name} cannot be used: {problem.reason}")
    items = list(source.items())
    labels = np.array([label for _, label in _opened(items)], np.int64) if source.num_classes else None
    class_names = source.class_names()
    if (path / SAMPLES_RECORD).is_file():
        items = [item for item in items if item.name != SAMPLES_SHEET]
        labels = _labels_in_names(items)
        class_names = ()
    sizes = _sizes(path, items)
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.name}\0{sha256(path / item.name)}\0".encode())

    def read(indices: np.ndarray) -> Tensor:
        with _without_warnings(), ThreadPoolExecutor() as pool:
            return torch.from_numpy(np.stack(list(pool.map(_pixels, [items[i] for i in indices]))))

    lossy = any(item.name.lower().endswith(LOSSY) for item in items)
    return ImageSet(len(items), sizes, read, digest.hexdigest(), source.name, labels, class_names, lossy)


def _from_npz(path: Path) -> ImageSet:
    source = NpzSource(path)
    source.check_expansion()
    images, labels = zip(*((_pixels(item), item.read()[1]) for item in source.items()), strict=True)
    pixels = torch.from_numpy(np.stack(images))
    return ImageSet(
        count=len(pixels),
        size=(pixels.shape[1], pixels.shape[2]),
        read=lambda indices: pixels[torch.from_numpy(indices)],
        key=sha256(path),
        name=source.name,
        labels=np.array(labels, np.int64) if source.num_classes else None,
        class_names=source.class_names(),
    )


def _opened(items: Sequence[Item]) -> list[tuple[tuple[int, int], int]]:
    """(width, height) and label of every item, from the headers."""
    found = []
    with _without_warnings():
        for item in items:
            try:
                found.append(look(item))
            except Unusable as error:
                raise UserError(f"{item.name}: not readable as an image ({error.reason})") from None
    return found


def _sizes(path: Path, items: Sequence[Item]) -> tuple[int, int]:
    sizes = [size for size, _ in _opened(items)]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        (w, h), (w2, h2) = sizes[0], sizes[other]
        raise UserError(
            f"{path}: images of mixed sizes, {items[0].name} is {w}x{h} and {items[other].name} {w2}x{h2}; "
            "sagan prepare brings them to one"
        )
    return sizes[0][1], sizes[0][0]


def _labels_in_names(items: Sequence[Item]) -> np.ndarray | None:
    matches = [SAMPLED.fullmatch(item.name) for item in items]
    if not all(match is not None and match[1] is not None for match in matches):
        return None
    return np.array([int(match[1]) for match in matches if match is not None], np.int64)


def _pixels(item: Item) -> np.ndarray:
    """uint8 (H, W, 3)."""
    try:
        return decode(item)
    except Unusable as error:
        raise UserError(f"{item.name}: not readable as an image ({error.reason})") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What Pillow warns of is judged by `convert`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield

"""Prepared data: a folder with one memory-mapped array of images, their labels and a manifest.

images.npy: uint8 (N, R, R, C), C = 3, or 1 for grayscale. labels.npy: int64 (N,). manifest.json: `Manifest`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import ValidationError, model_validator

from sagan.config.schema import Count, Positive, Settings
from sagan.utils.errors import UserError, first_error
from sagan.utils.io import expand_home, read_json
from sagan.utils.random import numpy_generator

FORMAT = 1


class Manifest(Settings):
    """Description of a prepared folder.

    Attributes:
        channels: 3, or 1 for grayscale.
        num_classes: 0 for images without labels; class_names and class_counts are then empty.
        source: display name.
        skip_bad, skipped: whether unusable images were left out, and how many.
        fingerprint: of source and settings when the folder was prepared.
        content_hash: SHA-256 of the bytes of all images, then of all labels (int64, little endian).
    """

    format: int = FORMAT
    resolution: Positive
    channels: Literal[1, 3] = 3
    count: Positive
    num_classes: Count
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    source: str
    resize: str
    skip_bad: bool
    skipped: Count
    fingerprint: str
    content_hash: str

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        for name in (self.source, self.resize, self.content_hash, *self.class_names):
            if not name.isprintable():  # they are shown on terminals and in figures
                raise ValueError(f"{name!r} is not printable")
        if not self.num_classes == len(self.class_names) == len(self.class_counts) <= self.count:
            found = f"{len(self.class_names)} names and {len(self.class_counts)} counts"
            raise ValueError(f"{self.num_classes} classes, but {found} of them")
        return self


@dataclass(frozen=True, eq=False)
class PreparedData:
    """An open prepared folder. In a notebook it shows its contact sheet.

    Attributes:
        images: uint8 (N, R, R, C), memory-mapped; C is 3, or 1 for grayscale.
        labels: int64 (N,), 0 without classes.
        manifest: resolution, class names and counts, source, hash.

    Examples:
        >>> data = sagan.prepare("shapes:40", "data/shapes", resolution=32)
        >>> len(data), data.manifest.num_classes
        (40, 4)
    """

    folder: Path
    manifest: Manifest
    images: np.memmap = field(repr=False)  # uint8 (N, R, R, C)
    labels: np.ndarray = field(repr=False)  # int64 (N,)

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedData":
        """Raises UserError if the folder was not prepared, or its files are damaged or contradict the manifest."""
        folder = expand_home(folder)
        if not is_prepared(folder):
            raise UserError(f"{folder}: not a folder of prepared data (sagan prepare makes one)")
        manifest = _read_manifest(folder / "manifest.json")
        images, labels = _map(folder / "images.npy"), _map(folder / "labels.npy")
        n, size = manifest.count, (manifest.resolution, manifest.resolution, manifest.channels)
        for name, array, wanted in (("images", images, ("uint8", (n, *size))), ("labels", labels, ("int64", (n,)))):
            if (str(array.dtype), array.shape) != wanted:
                raise UserError(
                    f"{folder / name}.npy: holds {array.dtype} {array.shape}, "
                    f"the manifest says {wanted[0]} {wanted[1]}; prepare it again"
                )
        counts = np.bincount(labels) if labels.min() >= 0 and labels.max() < max(manifest.num_classes, 1) else None
        if counts is None or (manifest.num_classes and tuple(counts.tolist()) != manifest.class_counts):
            raise UserError(f"{folder / 'labels.npy'}: its labels are not those of the manifest; prepare it again")
        return cls(folder, manifest, images, np.array(labels))

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def report(self) -> dict[str, Any]:
        """What `sagan prepare --json` prints: counts, conversions, warnings."""
        return read_json(self.folder / "report.json")

    def __fspath__(self) -> str:
        return str(self.folder)

    def _repr_png_(self) -> bytes:
        return (self.folder / "contact_sheet.png").read_bytes()

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the images uint8 (B, R, R, C) and labels int64 (B,) at `indices` (B,)."""
        return np.asarray(self.images)[indices], self.labels[indices]


def is_prepared(path: Path | str) -> bool:
    """Whether this is a folder of prepared data, intact or damaged."""
    folder = expand_home(path)
    return (folder / "manifest.json").is_file() and any((folder / f"{n}.npy").is_file() for n in ("images", "labels"))


def _read_manifest(path: Path) -> Manifest:
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        found = str(raw.get("format"))[:20]
        raise UserError(f"{path}: its format is {found}, this version of sagan reads {FORMAT}; prepare it again")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: not a manifest of prepared data ({first_error(error)})") from None


def _map(path: Path) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path}: missing, truncated or damaged ({error}); prepare it again") from None


def indices(seed: int, size: int, start: int, count: int) -> np.ndarray:
    """Positions start … start + count - 1 of the infinite order over `size` images: int64 (count,).

    Every epoch (`size` positions) contains each image once.
    """
    pieces = [np.empty(0, np.int64)]
    while count > 0:
        epoch, offset = divmod(start, size)
        piece = _permutation(seed, size, epoch)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    # Sorting the raw stream is stable across versions of NumPy, Generator.permutation is not.
    return np.argsort(numpy_generator(seed, "order", epoch).bit_generator.random_raw(size), kind="stable")


T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterator over fetch(start), fetch(start + 1), … fetch(stop - 1), computed in one background thread.

    At most `depth` results are computed ahead. An exception of `fetch` is raised in place of its result and ends the
    iteration.

        with Prefetcher(batch_of_step, start=step, stop=steps) as batches:
            for batch in batches: …
    """

    def __init__(self, fetch: Callable[[int], T], start: int, stop: int, depth: int = 2) -> None:
        self._fetch = fetch
        self._steps = iter(range(start, stop))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[T]] = deque()
        self._submit(depth)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._pending:
            self.close()
            raise StopIteration
        result = self._pending.popleft()
        try:
            value = result.result()
        except BaseException:
            self.close()
            raise
        self._submit(1)
        return value

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the current fetch and drop all results; the iterator is then exhausted."""
        self._steps = iter(())
        self._pending.clear()
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, count: int) -> None:
        for step in islice(self._steps, count):
            self._pending.append(self._thread.submit(self._fetch, step))

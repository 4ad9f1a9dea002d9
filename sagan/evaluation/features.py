"""Image sets, and their features: computed in batches by all processes, cached, resumable."""

import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagan.data.dataset import PreparedData
from sagan.data.decode import Unusable, decode, look
from sagan.data.sources import FolderSource, Item, NpzSource, cache_folder
from sagan.evaluation.extractors import Backbone, Features
from sagan.evaluation.fid import Moments, Statistics, load_statistics, save_statistics
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file, read_json, sha256, write_json
from sagan.utils.progress import Progress
from sagan.utils.random import numpy_generator
from sagan.utils.system import from_first, gather_in_turn, rank_and_count

SAMPLED = re.compile(r"seed[0-9]{8}(?:_class([0-9]+))?\.png")  # what `sagan sample` writes
SAMPLES_RECORD, SAMPLES_SHEET = "samples.json", "grid.png"
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`count` images of one size.

    Attributes:
        read: indices, int64 (b,) -> uint8 (b, H, W, 3), on any device.
        labels: int64 (count,), or None.
        key: hash of the content.
        name: display name, without local paths.
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
        """`count` random images of this set, always the same ones; UserError if it has fewer."""
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

    def batches(self, size: int) -> list[np.ndarray]:
        """The indices of all images, `size` at a time."""
        return [np.arange(start, min(start + size, self.count)) for start in range(0, self.count, size)]


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
    """The images of a folder or an .npz, at their own size. UserError for anything else, and for mixed sizes."""
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
    """Silence Pillow: `convert` checks what it warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


CHUNK = 512  # images in one file of a store


@dataclass(frozen=True, eq=False)
class Extraction:
    """Features of a set. The arrays are None if not requested, and on all processes but the first."""

    statistics: Statistics
    features: np.ndarray | None = None  # float32 (N, D)
    logits: np.ndarray | None = None  # float32 (N, K)


def extract(
    images: ImageSet,
    backbone: Backbone,
    batch_size: int,
    *,
    features: bool = False,
    logits: bool = False,
    store: Path | None = None,
    description: str = "features",
) -> Extraction:
    """Statistics of `images` and, if requested, all features and logits; every process calls it.

    `store`: a folder for finished chunks, so that the same call resumes after a kill; the caller removes it.
    """
    rank, processes = rank_and_count()
    moments = Moments(backbone.dimension, backbone.device)
    kept_features, kept_logits = [], []
    with Progress(images.count, description, quiet=rank > 0) as progress:
        for indices in images.batches(CHUNK if store is not None else batch_size)[rank::processes]:
            found = _stored(store, indices, logits)
            if found is None:
                found = _computed(images, backbone, indices, batch_size, logits, progress, processes)
                _store(store, indices, found)
            else:
                progress.advance(len(indices) * processes)
            moments.update(found.features.to(backbone.device))
            if features:
                kept_features.append(found.features.cpu().numpy())
            if found.logits is not None:
                kept_logits.append(found.logits.cpu().numpy())
    moments.reduce()
    return Extraction(
        moments.statistics(),
        gather_in_turn(kept_features) if features else None,
        gather_in_turn(kept_logits) if logits else None,
    )


def _computed(
    images: ImageSet,
    backbone: Backbone,
    indices: np.ndarray,
    batch_size: int,
    logits: bool,
    progress: Progress,
    processes: int,
) -> Features:
    parts = []
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        parts.append(backbone(images.read(batch)))
        progress.advance(len(batch) * processes)
    return Features(
        torch.cat([part.features for part in parts]),
        torch.cat([part.logits for part in parts if part.logits is not None]) if logits else None,
    )


def _path(store: Path, indices: np.ndarray) -> Path:
    return store / f"{indices[0]:08d}-{indices[-1]:08d}.npz"


def _stored(store: Path | None, indices: np.ndarray, logits: bool) -> Features | None:
    """What an earlier call stored; None if it did not, or if the file is damaged."""
    if store is None or not _path(store, indices).is_file():
        return None
    try:
        with np.load(_path(store, indices), allow_pickle=False) as arrays:
            features = torch.from_numpy(arrays["features"])
            return Features(features, torch.from_numpy(arrays["logits"]) if logits else None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _store(store: Path | None, indices: np.ndarray, found: Features) -> None:
    if store is not None:
        arrays = {"features": found.features} | ({} if found.logits is None else {"logits": found.logits})
        with atomic_file(_path(store, indices)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: tensor.cpu().numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]


FORMAT = 1
CHECKED = {  # fields of statistics that must match -> their names in messages
    "backbone": "backbone", "backbone_sha256": "weights file", "backbone_input": "backbone input size",
    "size": "image size",
}  # fmt: skip
STATISTICS, FEATURES, CHECKSUM, STORE = "statistics.npz", "features.npy", "features.json", "partial"


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with: either `images`, or only their `statistics`, described by `about`.

    `resize`: "crop" or "squash", how the images were resized to the samples' size; "as is" if they were not.
    """

    name: str
    images: ImageSet | None
    statistics: Statistics | None = None
    about: dict[str, Any] = field(default_factory=dict)
    resize: str = "as is"

    @property
    def count(self) -> int:
        """Number of images; 0 if unknown."""
        if self.images is not None:
            return self.images.count
        return self.statistics.count if self.statistics is not None else 0


def reference_from_file(path: Path, size: tuple[int, int], backbone: Backbone) -> Reference:
    """The reference of a statistics file; UserError for another backbone, other weights or another size."""
    statistics, about = load_statistics(path)
    for name, word in CHECKED.items():
        here = list(size) if name == "size" else identity(backbone)[name]
        if name in about and about[name] != here:
            raise UserError(f"{path}: statistics of another {word} ({_short(about[name])}, here {_short(here)})")
    if len(statistics.mean) != backbone.dimension:
        raise UserError(
            f"{path}: statistics of {len(statistics.mean)} features, {backbone.name} has {backbone.dimension}"
        )
    return Reference(str(about.get("name", path.name)), None, statistics, about, str(about.get("resize", "as is")))


def identity(backbone: Backbone) -> dict[str, str]:
    """What decides the features of a backbone, as in the protocol."""
    return {"backbone": backbone.name, "backbone_sha256": backbone.sha256, "backbone_input": backbone.input}


def reference_features(
    reference: Reference, backbone: Backbone, batch_size: int, features: bool = False, cache: Path | None = None
) -> Extraction | None:
    """Statistics of a reference and, if requested, all features; every process calls it, the first one gets them.

    They are cached in `cache` (~/.cache/sagan/features) under a hash of images and backbone, and verified when read.
    """
    if reference.images is None:
        assert reference.statistics is not None
        return Extraction(reference.statistics)
    if reference.images.count < 2:
        raise UserError(f"fid: needs at least 2 images, {reference.name} has {reference.images.count}")
    described = {"format": FORMAT, "images": reference.images.key, **identity(backbone)}
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
    folder = (cache or cache_folder() / "features") / name
    main = rank_and_count()[0] == 0
    found = _read(folder, described, features) if main else None
    if from_first(found is not None):
        return found
    extraction = extract(
        reference.images, backbone, batch_size, features=features, store=folder / STORE,
        description=f"features of {reference.name}",
    )  # fmt: skip
    if not main:
        return None
    _write(folder, extraction, described)
    return extraction


def _read(folder: Path, described: dict[str, Any], features: bool) -> Extraction | None:
    """The cached entry; None if it is missing, incomplete or damaged."""
    try:
        statistics, about = load_statistics(folder / STATISTICS)
        if about != described:
            return None
        if not features:
            return Extraction(statistics)
        if read_json(folder / CHECKSUM) != sha256(folder / FEATURES):
            return None
        return Extraction(statistics, np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False))
    except (UserError, OSError, ValueError):
        return None


def _write(folder: Path, extraction: Extraction, described: dict[str, Any]) -> None:
    """Fill the cache entry; the statistics come last and make it valid."""
    if extraction.features is not None:
        with atomic_file(folder / FEATURES) as temporary:
            np.save(temporary, extraction.features)
        write_json(folder / CHECKSUM, sha256(folder / FEATURES))
    save_statistics(folder / STATISTICS, extraction.statistics, described)
    shutil.rmtree(folder / STORE, ignore_errors=True)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return str(value) if len(str(value)) <= 20 else f"{str(value)[:16]}…"

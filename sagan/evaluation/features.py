"""Image sets and their features, which are computed in batches by all processes, cached, and resumable."""

import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sagan.data.dataset import PreparedData
from sagan.data.decode import Unusable, decode, look
from sagan.data.sources import FolderSource, Item, MemorySource, NpzSource, Source, cache_folder
from sagan.evaluation.extractors import Backbone, Features
from sagan.evaluation.fid import Moments, Statistics, load_statistics, save_statistics
from sagan.utils.errors import Interrupted, UserError
from sagan.utils.io import atomic_file, read_json, sha256, write_json
from sagan.utils.progress import Progress
from sagan.utils.random import numpy_generator
from sagan.utils.system import from_first, gather_in_turn, rank_and_count

T = TypeVar("T")
SAMPLE_NAME = re.compile(r"seed[0-9]{8}(?:_class([0-9]+))?\.png")  # files of `sagan sample`
SAMPLES_RECORD, SAMPLE_GRID = "samples.json", "grid.png"
LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".heic", ".heif", ".hif")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`count` images of one size.

    Attributes:
        size: (height, width).
        read: indices, int64 (b,) -> uint8 (b, H, W, 3), on any device.
        key: hash of the content.
        name: display name, without local paths.
        labels: int64 (count,), or None.
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
        """A fixed random subset of `count` images; UserError if the set has fewer."""
        if count > self.count:
            raise UserError(f"{self.name}: {count} images were asked for, it holds {self.count}; lower --num")
        if count == self.count:
            return self
        chosen = np.sort(numpy_generator(0, "images of a set").permutation(self.count)[:count])
        labels = None if self.labels is None else self.labels[chosen]
        key = f"{self.key}:{count}"
        return replace(self, count=count, read=lambda indices: self.read(chosen[indices]), key=key, labels=labels)

    def batches(self, size: int) -> list[np.ndarray]:
        """The indices of all images, `size` at a time."""
        return [np.arange(start, min(start + size, self.count)) for start in range(0, self.count, size)]


def from_prepared(data: PreparedData) -> ImageSet:
    """The images of a prepared folder; grayscale ones get three equal channels."""
    manifest = data.manifest
    return ImageSet(
        count=len(data),
        size=(manifest.resolution, manifest.resolution),
        read=lambda indices: torch.from_numpy(data.gather(indices)[0]).expand(-1, -1, -1, 3),
        key=manifest.content_hash,
        name=manifest.source,
        labels=data.labels if manifest.num_classes else None,
        class_names=manifest.class_names,
    )


def from_files(path: Path) -> ImageSet:
    """The images of a folder or an .npz, at their own size. UserError for anything else, and for mixed sizes."""
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise UserError(f"{path}: expected a folder of images or an .npz with `images`")
    source = NpzSource(path)
    source.check_expansion()
    return _whole(source, sha256(path))


def from_memory(data: Any) -> ImageSet:
    """Images in memory, at their own size. UserError as of `MemorySource`, and for mixed sizes."""
    source = MemorySource(data)
    return _whole(source, source.fingerprint())


def _whole(source: Source, key: str) -> ImageSet:
    """The images of a source, read into memory."""
    images, labels = zip(*((_readable(decode, item), item.read()[1]) for item in source.items()), strict=True)
    if sizes := {image.shape[:2] for image in images} - {images[0].shape[:2]}:
        raise UserError(f"{source.name}: images of mixed sizes, {images[0].shape[:2]} and {min(sizes)}; prepare them")
    pixels = torch.from_numpy(np.stack(images))
    return ImageSet(
        count=len(pixels),
        size=(pixels.shape[1], pixels.shape[2]),
        read=lambda indices: pixels[torch.from_numpy(indices)],
        key=key,
        name=source.name,
        labels=np.array(labels, np.int64) if source.num_classes else None,
        class_names=source.class_names(),
    )


def _from_folder(path: Path) -> ImageSet:
    source = FolderSource(path)
    if source.problems:
        problem = source.problems[0]
        raise UserError(f"{path}: {problem.name} cannot be used: {problem.reason}")
    items, class_names = list(source.items()), source.class_names()
    sampled = (path / SAMPLES_RECORD).is_file()
    if sampled:
        items = [item for item in items if item.name != SAMPLE_GRID]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: `look` and `decode` check what they are about
        sizes, labels = zip(*(_readable(look, item) for item in items), strict=True)
    for item, (width, height) in zip(items, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise UserError(
                f"{path}: images of mixed sizes, {items[0].name} is {sizes[0][0]}x{sizes[0][1]} and {item.name} "
                f"{width}x{height}; sagan prepare brings them to one"
            )
    numbers = np.array(labels, np.int64) if source.num_classes else None
    if sampled:
        matches = [SAMPLE_NAME.fullmatch(item.name) for item in items]
        found = [int(match[1]) for match in matches if match is not None and match[1] is not None]
        numbers, class_names = np.array(found, np.int64) if len(found) == len(items) else None, ()
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.name}\0{sha256(path / item.name)}\0".encode())

    def read(indices: np.ndarray) -> Tensor:
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")
            return torch.from_numpy(np.stack(list(pool.map(lambda i: _readable(decode, items[i]), indices))))

    lossy = any(item.name.lower().endswith(LOSSY) for item in items)
    size = sizes[0][1], sizes[0][0]
    return ImageSet(len(items), size, read, digest.hexdigest(), source.name, numbers, class_names, lossy)


def _readable(read: Callable[[Item], T], item: Item) -> T:
    """`read(item)`; UserError if the item is not a readable image."""
    try:
        return read(item)
    except Unusable as error:
        raise UserError(f"{item.name}: not readable as an image ({error.reason})") from None


CHUNK = 512  # images in one file of a store


@dataclass(frozen=True, eq=False)
class Extraction:
    """Features of a set. The arrays are None if not requested, and on all processes but the first."""

    statistics: Statistics
    features: np.ndarray | None = None  # float32 (N, D)
    logits: np.ndarray | None = None  # float32 (N, K)


def extract(
    images: ImageSet, backbone: Backbone, batch_size: int, *,
    features: bool = False, logits: bool = False, store: Path | None = None, description: str = "features",
    stop: Callable[[], bool] | None = None,
) -> Extraction:  # fmt: skip
    """Compute statistics of `images` and, if requested, all features and logits; every process calls it.

    `store`: a folder for finished chunks, so that the same call resumes after a kill; the caller removes it.
    `stop`: asked before every batch, equally often by every process; its answer must be the same on all of them.
    Raises Interrupted when it is True.
    """
    rank, processes = rank_and_count()
    moments = Moments(backbone.dimension, backbone.device)
    all_features, all_logits = [], []
    size = batch_size if store is None else min(CHUNK, -(-images.count // processes))
    chunks = images.batches(size)
    chunks += [np.arange(0)] * (-len(chunks) % processes)  # as many for every process
    with Progress(images.count, description, quiet=rank > 0) as progress:
        for indices in chunks[rank::processes]:
            found, parts = _stored(store, indices, logits) if store is not None and len(indices) else None, []
            for start in range(0, size, batch_size):
                if stop is not None and stop():
                    raise Interrupted
                if found is None and start < len(indices):
                    parts.append(backbone(images.read(indices[start : start + batch_size])))
                    progress.advance(len(parts[-1].features) * processes)
            if not len(indices):
                continue
            if found is None:
                found = Features(
                    torch.cat([part.features for part in parts]),
                    torch.cat([part.logits for part in parts if part.logits is not None]) if logits else None,
                )
                if store is not None:
                    _store(store, indices, found)
            else:
                progress.advance(len(indices) * processes)
            moments.update(found.features.to(backbone.device))
            if features:
                all_features.append(found.features.cpu().numpy())
            if found.logits is not None:
                all_logits.append(found.logits.cpu().numpy())
    moments.reduce()
    return Extraction(
        moments.statistics(),
        gather_in_turn(all_features) if features else None,
        gather_in_turn(all_logits) if logits else None,
    )


def _chunk_path(store: Path, indices: np.ndarray) -> Path:
    return store / f"{indices[0]:08d}-{indices[-1]:08d}.npz"


def _stored(store: Path, indices: np.ndarray, logits: bool) -> Features | None:
    """A chunk of an earlier call; None if it is missing or damaged."""
    try:
        with np.load(_chunk_path(store, indices), allow_pickle=False) as arrays:
            features = torch.from_numpy(arrays["features"])
            return Features(features, torch.from_numpy(arrays["logits"]) if logits else None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _store(store: Path, indices: np.ndarray, found: Features) -> None:
    arrays = {name: tensor.cpu().numpy() for name, tensor in found._asdict().items() if tensor is not None}
    with atomic_file(_chunk_path(store, indices)) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


FORMAT = 1
CHECKED = {  # fields of statistics that must match -> their names in messages
    "backbone": "backbone", "backbone_sha256": "weights file", "backbone_input": "backbone input size",
    "size": "image size",
}  # fmt: skip
STATISTICS, FEATURES, CHECKSUM, STORE = "statistics.npz", "features.npy", "features.json", "partial"


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with: either `images`, or only their `statistics`, described by `about`.

    `resize`: how the images were resized to the samples' size, "crop" or "squash"; "as is" if they were not.
    """

    name: str
    images: ImageSet | None
    statistics: Statistics | None = None
    about: dict[str, Any] = field(default_factory=dict)
    resize: str = "as is"

    @property
    def count(self) -> int:
        """Number of images; 0 if unknown."""
        known = self.images or self.statistics
        return 0 if known is None else known.count


def reference_from_file(path: Path, size: tuple[int, int], backbone: Backbone) -> Reference:
    """The reference of a statistics file; UserError for another backbone, other weights or another size."""
    statistics, about = load_statistics(path)
    here = {**identity(backbone), "size": list(size)}
    for name, word in CHECKED.items():
        if name in about and about[name] != here[name]:
            found, expected = _short(about[name]), _short(here[name])
            raise UserError(f"{path}: statistics of another {word} ({found}, here {expected})")
    if len(statistics.mean) != backbone.dimension:
        raise UserError(
            f"{path}: statistics of {len(statistics.mean)} features, {backbone.name} has {backbone.dimension}"
        )
    return Reference(str(about.get("name", path.name)), None, statistics, about, str(about.get("resize", "as is")))


def _short(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 20 else f"{text[:16]}…"


def identity(backbone: Backbone) -> dict[str, str]:
    """What decides the features of a backbone, as in the protocol."""
    return {"backbone": backbone.name, "backbone_sha256": backbone.sha256, "backbone_input": backbone.input}


def reference_features(
    reference: Reference, backbone: Backbone, batch_size: int, features: bool = False, cache: Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Extraction | None:  # fmt: skip
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
        description=f"features of {reference.name}", stop=stop,
    )  # fmt: skip
    if not main:
        return None
    if extraction.features is not None:
        with atomic_file(folder / FEATURES) as temporary:
            np.save(temporary, extraction.features)
        write_json(folder / CHECKSUM, sha256(folder / FEATURES))
    save_statistics(folder / STATISTICS, extraction.statistics, described)  # last: they make the entry valid
    shutil.rmtree(folder / STORE, ignore_errors=True)
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

"""Features of images: streamed into statistics, shared among processes, taken up again where a kill stopped them."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sagan.evaluation.backbones import Backbone, Features
from sagan.evaluation.image_set import ImageSet
from sagan.evaluation.processes import gather_in_turn, rank_and_count
from sagan.evaluation.statistics import Moments, Statistics
from sagan.files import atomic_file
from sagan.progress import Progress

CHUNK = 512  # images between two files of a store


@dataclass(frozen=True, eq=False)
class Extraction:
    """What a set's features come to. The arrays are None where they were not asked for, and off the first process."""

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
    """Statistics, and where asked for all features and logits, of `images`; every process calls it.

    `store`: a folder that keeps what is done, so that the same call goes on after a kill; whoever made it removes it.
    """
    rank, processes = rank_and_count()
    chunk = CHUNK if store is not None else batch_size
    starts = range(0, images.count, chunk)[rank::processes]
    moments = Moments(backbone.dimension, backbone.device)
    kept_features, kept_logits = [], []
    with Progress(images.count, description, quiet=rank > 0) as progress:
        for start in starts:
            indices = np.arange(start, min(start + chunk, images.count))
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
    """What an earlier call stored; None where it did not, or where the file is damaged."""
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

"""What samples are compared with: images whose features are computed once and kept, or a file of statistics."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sagan.data.source import cache_folder
from sagan.errors import UserError
from sagan.evaluation.backbones import Backbone
from sagan.evaluation.choices import check_count
from sagan.evaluation.extraction import Extraction, extract
from sagan.evaluation.image_set import ImageSet
from sagan.evaluation.processes import from_first, rank_and_count
from sagan.evaluation.statistics import Statistics, load_statistics, save_statistics
from sagan.files import atomic_file, read_json, sha256, write_json

FORMAT = 1
OF_STATISTICS = {
    "backbone": "backbone", "backbone_sha256": "file of weights", "backbone_input": "input size of the backbone",
    "size": "size of images",
}  # fmt: skip
STATISTICS, FEATURES, CHECKSUM, STORE = "statistics.npz", "features.npy", "features.json", "partial"


@dataclass(frozen=True, eq=False)
class Reference:
    """Either `images`, or `statistics` alone, of which `about` says where they are from.

    `resize`: "crop" or "squash", how the images were brought to the samples' size; "as is" where they were not.
    """

    name: str
    images: ImageSet | None
    statistics: Statistics | None = None
    about: dict[str, Any] = field(default_factory=dict)
    resize: str = "as is"


def reference_from_file(path: Path, size: tuple[int, int], backbone: Backbone) -> Reference:
    """The reference of a statistics file; UserError when it is of another backbone, other weights or another size."""
    statistics, about = load_statistics(path)
    for name, word in OF_STATISTICS.items():
        here = list(size) if name == "size" else identity(backbone)[name]
        if name in about and about[name] != here:
            raise UserError(f"{path}: statistics of another {word} ({_short(about[name])}, here {_short(here)})")
    if len(statistics.mean) != backbone.dimension:
        raise UserError(
            f"{path}: statistics of {len(statistics.mean)} features, {backbone.name} has {backbone.dimension}"
        )
    return Reference(str(about.get("name", path.name)), None, statistics, about, str(about.get("resize", "as is")))


def identity(backbone: Backbone) -> dict[str, str]:
    """What of a backbone decides its features."""
    return {"backbone": backbone.name, "backbone_sha256": backbone.sha256, "backbone_input": backbone.input}


def reference_features(
    reference: Reference, backbone: Backbone, batch_size: int, features: bool = False, cache: Path | None = None
) -> Extraction | None:
    """Statistics, and where asked for all features, of a reference; every process calls it, the first one gets them.

    They are kept in `cache` (~/.cache/sagan/features) under a hash of images and backbone, checked on reading, and
    computed anew when anything differs. UserError when features are asked of a file of statistics.
    """
    if reference.images is None:
        assert reference.statistics is not None
        if features:
            raise UserError(f"{reference.name}: holds statistics only, enough for fid; the other metrics need images")
        return Extraction(reference.statistics)
    check_count("fid", reference.images.count, reference.name)
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
    """What the cache holds, whole and undamaged; else None."""
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
    """Fill the cache; its last file is the one that makes the entry count."""
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

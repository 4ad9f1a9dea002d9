"""Prepared data: a folder with one memory-mapped array of images, their labels and a manifest.

images.npy: uint8 (N, R, R, 3). labels.npy: int64 (N,). manifest.json: `Manifest`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError, model_validator

from sagan.errors import UserError
from sagan.files import expand_home, read_json
from sagan.settings import Count, Positive, Settings

FORMAT = 1


class Manifest(Settings):
    """What a prepared folder holds.

    Attributes:
        num_classes: 0 for images without labels; class_names and class_counts are then empty.
        source: its display name.
        skip_bad: whether unusable images were left out; skipped: how many were.
        fingerprint: of source and settings, as they were when the folder was prepared.
        content_hash: SHA-256 of the bytes of all images, then of all labels (int64, little endian); of nothing else.
    """

    format: int = FORMAT
    resolution: Positive
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
            raise ValueError(
                f"{self.num_classes} classes, {len(self.class_names)} names and {len(self.class_counts)} counts of them"
            )
        return self


@dataclass(frozen=True, eq=False)
class PreparedData:
    """An open prepared folder; `images` is read from disk as it is indexed."""

    folder: Path
    manifest: Manifest
    images: np.memmap  # uint8 (N, R, R, 3)
    labels: np.ndarray  # int64 (N,)

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedData":
        """Raises UserError for a folder that was not prepared, or whose files are damaged or contradict it."""
        folder = expand_home(folder)
        if not is_prepared(folder):
            raise UserError(f"{folder}: not a folder of prepared data (sagan prepare makes one)")
        manifest = _read_manifest(folder / "manifest.json")
        images, labels = _map(folder / "images.npy"), _map(folder / "labels.npy")
        n, r = manifest.count, manifest.resolution
        for name, array, dtype, shape in (
            ("images", images, np.uint8, (n, r, r, 3)),
            ("labels", labels, np.int64, (n,)),
        ):
            if array.dtype != dtype or array.shape != shape:
                raise UserError(
                    f"{folder / name}.npy: holds {array.dtype} {array.shape}, "
                    f"the manifest says {np.dtype(dtype)} {shape}; prepare it again"
                )
        counts = np.bincount(labels) if labels.min() >= 0 and labels.max() < max(manifest.num_classes, 1) else None
        if counts is None or (manifest.num_classes and tuple(counts.tolist()) != manifest.class_counts):
            raise UserError(f"{folder / 'labels.npy'}: its labels are not those of the manifest; prepare it again")
        return cls(folder, manifest, images, np.array(labels))

    def __len__(self) -> int:
        return self.manifest.count

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (B, R, R, 3) and labels int64 (B,) at `indices` (B,), as arrays of their own."""
        return np.asarray(self.images)[indices], self.labels[indices]


def is_prepared(path: Path | str) -> bool:
    """Whether this is a folder of prepared data, sound or damaged."""
    folder = expand_home(path)
    return (folder / "manifest.json").is_file() and any((folder / f"{n}.npy").is_file() for n in ("images", "labels"))


def _read_manifest(path: Path) -> Manifest:
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise UserError(
            f"{path}: its format is {str(raw.get('format'))[:20]}, "
            f"this version of sagan reads {FORMAT}; prepare it again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        finding = error.errors()[0]
        where = ".".join(map(str, finding["loc"]))[:100]
        reason = finding["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: not a manifest of prepared data ({f'{where}: ' if where else ''}{reason})") from None


def _map(path: Path) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # of damaged bytes anything may come
        raise UserError(f"{path}: missing, truncated or damaged ({error}); prepare it again") from None

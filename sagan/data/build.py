"""The work of preparation: every image of a source read, converted, judged and written into a folder."""

import hashlib
import json
import re
import warnings
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sagan.data.contact_sheet import contact_sheet
from sagan.data.convert import Unusable, convert
from sagan.data.dataset import FORMAT, Manifest
from sagan.data.doctor import CONVERTED, UNUSABLE, WARNINGS, Report, Tally, duplicates, imbalance, refusal
from sagan.data.parallel import map_in_order
from sagan.data.source import Item, Problem, Source, printable
from sagan.data.writer import ImageWriter
from sagan.errors import UserError
from sagan.files import write_json
from sagan.progress import Progress


@dataclass(frozen=True)
class Job:
    """What is to be prepared, and how."""

    source: Source
    resolution: int
    resize: str
    skip_bad: bool

    @property
    def fingerprint(self) -> str:
        """Equal for equal sources and settings."""
        parts = [FORMAT, self.source.name, self.source.fingerprint(), self.resolution, self.resize, self.skip_bad]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        name = re.sub(r"[^\w.-]+", "-", self.source.name).strip(".-")
        return f"{name or 'data'}-{self.resolution}-{self.fingerprint[:12]}"


class Outcome(NamedTuple):
    """What became of an item."""

    name: str
    pixels: np.ndarray  # (R, R, 3)
    label: int
    digest: int  # 64 bits of a hash of the pixels
    notes: list[str]


@dataclass
class Seen:
    """What is known of the images beside their pixels: a few bytes an image, in the order in which they are written."""

    names: list[str]
    labels: array
    digests: array
    tally: Tally
    problems: list[Problem]


def build(job: Job, folder: Path) -> Report:
    """Write images.npy, labels.npy, manifest.json, report.json, contact_sheet.png (and skipped.txt) into `folder`.

    Raises UserError for images that cannot be used, unless the job says to skip them, and when nothing useful is left.
    """
    found = Seen([], array("q"), array("Q"), Tally(), list(job.source.problems))
    with open(folder / "images.npy", "wb+") as file:
        writer = ImageWriter(file, job.resolution)
        for outcome in _outcomes(job):
            if isinstance(outcome, Problem):
                found.problems.append(outcome)
                continue
            writer.append(outcome.pixels)
            found.names.append(outcome.name)
            found.labels.append(outcome.label)
            found.digests.append(outcome.digest)
            for note in outcome.notes:
                found.tally.add(note, outcome.name)
        writer.finish()
    if found.problems and not job.skip_bad:
        raise UserError(refusal(job.source.name, found.problems))
    if not found.names:
        raise UserError(f"{job.source.name}: no image is left, all {len(found.problems)} cannot be used")
    labels, class_names = _without_empty_classes(job.source, np.array(found.labels, np.int64))
    np.save(folder / "labels.npy", labels)
    writer.digest.update(labels.astype("<i8").tobytes())
    return _describe(job, folder, found, labels, class_names, writer.digest.hexdigest())


def _outcomes(job: Job) -> Iterable[Outcome | Problem]:
    """In the order of the source, with progress shown."""
    process = partial(_process, resolution=job.resolution, resize=job.resize)
    with Progress(len(job.source), f"preparing {job.source.name}") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # what Pillow warns of is judged here
        for outcome in map_in_order(process, job.source.items()):
            yield outcome
            progress.advance()


def _process(item: Item, resolution: int, resize: str) -> Outcome | Problem:
    try:
        pixels, label, notes = convert(item, resolution, resize)
    except Unusable as bad:
        return Problem(bad.kind, item.name, printable(bad.reason))
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=8).digest()
    return Outcome(item.name, pixels, label, int.from_bytes(digest, "little"), notes)


def _without_empty_classes(source: Source, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels renumbered over the classes that have images, and the names of these."""
    if not source.num_classes:
        return labels, ()
    present, labels = np.unique(labels, return_inverse=True)
    if len(present) == 1:
        raise UserError(f"{source.name}: only one class is left, {source.class_names()[present[0]]}")
    return labels.astype(np.int64), tuple(source.class_names()[label] for label in present)


def _describe(
    job: Job, folder: Path, found: Seen, labels: np.ndarray, class_names: tuple[str, ...], content_hash: str
) -> Report:
    """Write everything that is not an array."""
    class_counts: tuple[int, ...] = tuple(np.bincount(labels).tolist()) if class_names else ()
    manifest = Manifest(
        resolution=job.resolution,
        count=len(labels),
        num_classes=len(class_names),
        class_names=class_names,
        class_counts=class_counts,
        source=job.source.name,
        resize=job.resize,
        skip_bad=job.skip_bad,
        skipped=len(found.problems),
        fingerprint=job.fingerprint,
        content_hash=content_hash,
    )
    by_class = dict(zip(class_names, class_counts, strict=True))
    copies, skipped, ignored = duplicates(np.array(found.digests), labels, found.names), Tally(), Tally()
    for problem in found.problems:
        skipped.add(problem.kind, problem.name)
    for name in job.source.ignored:
        ignored.add("not_images", name)
    report = Report(
        source=job.source.name,
        resolution=job.resolution,
        resize=job.resize,
        images=len(labels),
        class_counts=by_class,
        converted=found.tally.findings(CONVERTED),
        warnings=copies.findings(WARNINGS) | imbalance(by_class) | ignored.findings(WARNINGS),
        skipped=skipped.findings(UNUSABLE),
        content_hash=content_hash,
    )
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    write_json(folder / "report.json", report.model_dump(mode="json"))
    if found.problems:
        lines = [f"{problem.name}\t{problem.kind}\t{problem.reason}\n" for problem in found.problems]
        (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8")
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
    contact_sheet(images, labels, class_names).save(folder / "contact_sheet.png")
    return report

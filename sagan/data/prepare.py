"""Preparation: a source of images becomes a folder of prepared data, whole or not at all, once."""

import glob
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import click
import numpy as np
from filelock import FileLock, Timeout

from sagan.config.options import Place, as_json
from sagan.config.schema import RESOLUTIONS, DataSettings
from sagan.data.dataset import FORMAT, Manifest, PreparedData, is_prepared
from sagan.data.decode import Unusable, convert
from sagan.data.report import (
    CONVERTED,
    UNUSABLE,
    WARNINGS,
    Report,
    Tally,
    contact_sheet,
    duplicates,
    imbalance,
    refusal,
)
from sagan.data.sources import Item, Problem, Source, cache_folder, open_source, printable
from sagan.utils.errors import UserError
from sagan.utils.io import TEMPORARY, atomic_folder, expand_home, make_folder, read_json, write_json
from sagan.utils.progress import Progress


class ImageWriter:
    """Writes uint8 (N, R, R, 3) to an open file. `digest`: SHA-256 of the image bytes so far."""

    def __init__(self, file: BinaryIO, resolution: int) -> None:
        self.count, self.digest = 0, hashlib.sha256()
        self._file, self._resolution = file, resolution
        self._data_start = self._write_header()

    def append(self, pixels: np.ndarray) -> None:
        """One image, (R, R, 3)."""
        data = pixels.tobytes()
        self._file.write(data)
        self.digest.update(data)
        self.count += 1

    def finish(self) -> None:
        """Put the number of images into the header."""
        self._file.seek(0)
        assert self._write_header() == self._data_start  # NumPy pads the header so that a larger N fits in place

    def _write_header(self) -> int:
        shape = (self.count, self._resolution, self._resolution, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()


T = TypeVar("T")
R = TypeVar("R")

GROUP = 8  # items that a thread takes at once


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield function(item) in the order of the items, computed by `threads` threads (None: one a core).

    `items` is consumed lazily, a few groups ahead of the results. An exception of `function` is raised in its turn.
    Threads, because decoding, resizing and hashing release the interpreter's lock: on two cores they are faster than
    processes on photographs (2000 against 1700 images/s) and fast enough on 32-pixel files (8000 against 13000).
    """
    threads = threads or os.cpu_count() or 1
    remaining = iter(items)
    pending: deque[Future[list[R]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while group := list(islice(remaining, GROUP)):
            pending.append(pool.submit(_apply, function, group))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]


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


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; call `waiting` first if another process holds it.

    The lock ends with its process, and its file is removed. Raises UserError where the file cannot be written.
    """
    lock = FileLock(path)
    try:
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            waiting()
            held = lock.acquire()
    except OSError as error:
        raise UserError(f"{path.parent}: not writable ({error.strerror})") from None
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # not every version of filelock removes it


RESIZES = ("crop", "squash")


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def prepare(
    source: str,
    out: Path | str,
    resolution: int,
    *,
    resize: str = "crop",
    skip_bad: bool = False,
    num_classes: int | None = None,
    report: Callable[[str], None] = to_stderr,
) -> PreparedData:
    """Convert every image of `source` to resolution × resolution and write the folder `out`.

    `out` gets images.npy, labels.npy, manifest.json, report.json, contact_sheet.png and, where images were left out,
    skipped.txt; either all of it or nothing. Where `out` already holds this source with these settings, nothing is
    done. Two processes with the same `out` do the work once. `report` takes the lines meant for the user.

    Args:
        resize: "crop" takes the central square of each image, "squash" ignores its aspect.
        skip_bad: leave out what cannot be used, instead of refusing the source.
        num_classes: what the source must have (None or 0: anything).

    Raises UserError for a source that is missing, empty or of unclear layout, for images that cannot be used, and for
    an `out` that holds something else.
    """
    job = _job(source, resolution, resize, skip_bad)
    check_classes(num_classes, job.source.num_classes, source)
    return _prepare(job, expand_home(out).resolve(), report)


def ensure_prepared(
    settings: DataSettings, default_folder: Path | None = None, report: Callable[[str], None] = to_stderr
) -> PreparedData:
    """The data of a run: opens a source that is prepared, prepares another one first.

    It is prepared into `settings.prepared`, or into a folder of `default_folder` (~/.cache/sagan/data) that is named
    after source and settings. Raises UserError as `prepare` does, and where resolution or classes do not fit.
    """
    if settings.source is None:
        raise UserError("data.source is not set: give a folder, an .npz, torchvision:NAME, shapes or a prepared folder")
    if is_prepared(settings.source):
        data = PreparedData.open(settings.source)
    else:
        job = _job(settings.source, settings.resolution, settings.resize, settings.skip_bad)
        check_classes(settings.num_classes, job.source.num_classes, settings.source)
        folder = (
            Path(settings.prepared)
            if settings.prepared
            else (default_folder or cache_folder() / "data") / job.folder_name
        )
        data = _prepare(job, expand_home(folder).resolve(), report)
    if data.manifest.resolution != settings.resolution:
        raise UserError(
            f"{settings.source}: prepared at {data.manifest.resolution}x{data.manifest.resolution}, "
            f"data.resolution is {settings.resolution}"
        )
    check_classes(settings.num_classes, data.manifest.num_classes, settings.source)
    return data


def check_classes(wanted: int | None, found: int, source: str) -> None:
    """UserError where the settings name a number of classes (not null, not 0) that the data does not have."""
    if wanted and wanted != found:
        has = f"{found} classes" if found else "no classes"
        raise UserError(
            f"data.num_classes is {wanted}, but {source} has {has}; null takes it from the data, 0 ignores labels"
        )


def _job(source: str, resolution: int, resize: str, skip_bad: bool) -> Job:
    if resolution not in RESOLUTIONS:
        raise UserError(f"resolution {resolution} is not one of {', '.join(map(str, RESOLUTIONS))}")
    if resize not in RESIZES:
        raise UserError(f"resize {resize!r} is not one of {', '.join(RESIZES)}")
    if is_prepared(source):
        raise UserError(f"{source}: is prepared data already")
    opened = open_source(source, resolution)
    if opened.problems and not skip_bad:
        raise UserError(refusal(source, opened.problems))
    return Job(opened, resolution, resize, skip_bad)


def _prepare(job: Job, out: Path, report: Callable[[str], None]) -> PreparedData:
    if data := _already_there(job, out, report):
        return data
    make_folder(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    with exclusive(lock, lambda: report(f"{out}: another process prepares it; waiting")):
        if data := _already_there(job, out, report):
            return data
        # Whoever left these is dead: the living hold the lock.
        for left_over in out.parent.glob(f"{TEMPORARY}????????-{glob.escape(out.name)}"):
            shutil.rmtree(left_over, ignore_errors=True)
        _check_space(job, out)
        with atomic_folder(out) as folder:
            found = build(job, folder)
    for line in found.lines():
        report(line)
    return PreparedData.open(out)


def _already_there(job: Job, out: Path, report: Callable[[str], None]) -> PreparedData | None:
    """The data when `out` holds what is wanted, None when it is free; UserError when it holds something else."""
    if job.source.root is not None and out.is_relative_to(job.source.root):
        raise UserError(f"{out}: lies within the source; choose a folder outside of it")
    if not is_prepared(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not prepared data; choose another folder")
        return None
    data = PreparedData.open(out)
    if data.manifest.fingerprint == job.fingerprint:
        report(f"{out}: already prepared from {job.source.name}, nothing to do")
        return data
    for name in ("source", "resolution", "resize", "skip_bad"):
        old, new = getattr(data.manifest, name), job.source.name if name == "source" else getattr(job, name)
        if old != new:
            raise UserError(f"{out}: was prepared with {name} {old}, not {new}; remove it or choose another folder")
    raise UserError(f"{out}: the files of {job.source.name} have changed since; remove it or choose another folder")


def _check_space(job: Job, out: Path) -> None:
    needed, free = len(job.source) * job.resolution**2 * 3, shutil.disk_usage(out.parent).free
    if needed > free:
        raise UserError(f"{out.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def prepare_command(source: str, out: Path, resolution: int, resize: str, skip_bad: bool, as_json: bool) -> None:
    """Prepare `source` into `out` and print the doctor's report; with `as_json` as one object, all else on stderr."""

    def report(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout)

    data = prepare(source, out, resolution, resize=resize, skip_bad=skip_bad, report=report)
    if as_json:
        print(json.dumps({"out": str(out), **read_json(data.folder / "report.json")}))
    else:
        print(f"{out}: ready; look at {out / 'contact_sheet.png'}")


@click.command("prepare")
@click.argument("source")
@click.option("--out", type=Place(), required=True, help="Folder of the prepared data.")
@click.option("--resolution", type=int, default=32, show_default=True, help="32, 64, 128 or 256.")
@click.option("--resize", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
              help="Of images that are not square.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used and list it.")
@as_json
def prepare_cli(source: str, out: Path, resolution: int, resize: str, skip_bad: bool, as_json: bool) -> None:
    """Check SOURCE and convert it: a folder of images, torchvision:NAME, an .npz, or shapes."""
    prepare_command(source, out, resolution, resize, skip_bad, as_json)

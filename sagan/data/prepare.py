"""Preparation: a source of images becomes a folder of prepared data, whole or not at all, once."""

import glob
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from sagan.data.build import Job, build
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.doctor import refusal
from sagan.data.lock import exclusive
from sagan.data.source import cache_folder
from sagan.data.sources import open_source
from sagan.errors import UserError
from sagan.files import TEMPORARY, atomic_folder, expand_home, make_folder
from sagan.resolutions import RESOLUTIONS
from sagan.settings import DataSettings

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

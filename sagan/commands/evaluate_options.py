"""The options of `sagan evaluate`. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagan.commands.measured import Source
from sagan.errors import UserError
from sagan.evaluation.choices import COMPARED, MANIFOLD, ON_EMBEDDINGS, ON_FEATURES
from sagan.files import check_file_place
from sagan.selections import check_truncation


@dataclass(frozen=True)
class Options:
    """The options of `sagan evaluate`, as the command line gives them."""

    source: str
    reference: str | None = None
    metrics: str | None = None
    num: int | None = None
    batch_size: int = 64
    labels: str = "reference"
    truncation: float | None = None
    repeats: int = 1
    which: str = "newest"
    modes: bool = False
    backbone: str = "inception"
    inception_weights: Path | None = None
    backbone_weights: Path | None = None
    vgg16_weights: Path | None = None
    lpips: str = "alex"
    lpips_weights: Path | None = None
    out: Path | None = None
    as_json: bool = False
    device: str = "auto"
    quiet: bool = False  # on all processes but the first


def check_options(options: Options, source: Source, metrics: Sequence[str] | None) -> None:
    """UserError for options that are wrong in themselves, or do not fit the source or each other."""
    check_truncation(options.truncation)
    for name, number, least in (
        ("--num", options.num, 2), ("--repeats", options.repeats, 1), ("--batch-size", options.batch_size, 1),
    ):  # fmt: skip
        if number is not None and number < least:
            raise UserError(f"{name} {number}: at least {least} {'samples are' if least == 2 else 'is'} needed")
    if options.out is not None:
        check_file_place(options.out)
    if options.repeats > 1 and options.modes:
        raise UserError("--repeats and --modes exclude each other; take the best mode first, then repeat it")
    if options.modes and source.kind not in ("run", "checkpoint"):
        raise UserError(
            f"{options.source}: --modes needs a run or a checkpoint; a snapshot is the averaged generator alone"
        )
    if options.which == "best" and (source.kind != "run" or options.modes):
        raise UserError("--which best: chooses among the snapshots of a run; give a run, and no --modes")
    if source.kind in ("prepared", "files"):
        _refuse_for_files(options)
    _check_weights(options, metrics)
    for name in metrics or ():
        if name in COMPARED and options.reference is None and source.run is None:
            raise UserError(f"{name}: compares with real images; name them with --reference")
    if metrics is not None and "nearest" in metrics and options.out is None and source.run is None:
        raise UserError("nearest: makes a sheet of images; say with --out FILE.json where the result goes")


def _refuse_for_files(options: Options) -> None:
    """Options that are about a generator go with no folder of images."""
    for name, given in (
        ("--truncation", options.truncation is not None), ("--repeats", options.repeats > 1),
        ("--labels", options.labels != "reference"),
    ):  # fmt: skip
        if given:
            raise UserError(f"{name}: says how samples are drawn, {options.source} holds images already")


def _check_weights(options: Options, metrics: Sequence[str] | None) -> None:
    """Weights that nothing would read are a mistake of the user, not to be passed over."""
    asked, inception = set(metrics or ("fid",)), options.backbone == "inception"
    for name, given, read in (
        ("--inception-weights", options.inception_weights, inception and not asked.isdisjoint(ON_FEATURES)),
        ("--backbone-weights", options.backbone_weights, not inception and not asked.isdisjoint(ON_FEATURES)),
        ("--vgg16-weights", options.vgg16_weights, not asked.isdisjoint(MANIFOLD)),
        ("--lpips-weights", options.lpips_weights, not asked.isdisjoint(ON_EMBEDDINGS)),
    ):
        if given is not None and not read:
            raise UserError(f"{name}: nothing of what is asked for reads them; leave it out, or change the metrics")

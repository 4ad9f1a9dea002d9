"""`sagan evaluate`: score a run, a snapshot or images. `sagan stats`: compute statistics of a reference."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from sagan.config.load import load_config
from sagan.config.options import Place, as_json, check_truncation, device, inception_weights
from sagan.config.schema import RESOLUTIONS, DataSettings
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.data.shapes import variant_of
from sagan.data.sources import cache_folder
from sagan.evaluation.evaluate import SampleSettings, evaluate, generated_images, load_networks
from sagan.evaluation.extractors import Backbone, load_backbone
from sagan.evaluation.features import (
    ImageSet,
    Reference,
    from_files,
    from_prepared,
    identity,
    reference_features,
    reference_from_file,
)
from sagan.evaluation.fid import save_statistics
from sagan.evaluation.registry import DIRECTION, MANIFOLD, METRICS, Networks, parse_metrics, present
from sagan.evaluation.result import EvaluationResult, over_repeats
from sagan.models.generator import Generator
from sagan.models.inference import with_standing_statistics
from sagan.runs.checkpoint import load_generators, require_whole_checkpoint, verify_checkpoint
from sagan.runs.snapshot import load_snapshot, newest_snapshot
from sagan.sampling.sampler import pick_device, processes
from sagan.utils.errors import UserError
from sagan.utils.images import save_png
from sagan.utils.io import append_json_line, check_file_place, expand_home, member_names, write_json
from sagan.utils.system import process_group

DEFAULT_NUM = 10_000


@dataclass(frozen=True)
class Source:
    """SOURCE and its kind; `run`: the run folder that it is or belongs to."""

    text: str
    kind: Literal["run", "checkpoint", "snapshot", "prepared", "files"]
    run: Path | None = None

    @property
    def path(self) -> Path:
        return Path(self.text)

    @property
    def holds_images(self) -> bool:
        return self.kind in ("prepared", "files")


def parse_source(text: str) -> Source:
    """Find the kind of SOURCE from its content; a text that is not a path is a Hub id."""
    path = expand_home(text)
    if (path / "snapshots").is_dir() or (path / "checkpoints").is_dir():
        return Source(str(path), "run", path)
    parent = path.resolve().parent.parent
    run = parent if (parent / "config.yaml").is_file() else None
    if (path / "state.json").is_file():
        return Source(str(path), "checkpoint", run)
    if is_prepared(path):
        return Source(str(path), "prepared")
    if path.is_file() or (path.is_dir() and not (path / "model.safetensors").is_file()):
        return Source(str(path), "files")
    return Source(str(path) if path.exists() else text, "snapshot", run)


def open_images(source: Source) -> ImageSet:
    """The images of a source that is not a generator."""
    return from_prepared(PreparedData.open(source.path)) if source.kind == "prepared" else from_files(source.path)


def open_reference(
    text: str, size: tuple[int, int], resize: Literal["crop", "squash"], backbone: Backbone | None, quiet: bool
) -> Reference:
    """A reference at the samples' size (H, W): statistics, prepared data, or a source, which is prepared first."""
    path = expand_home(text)
    if _holds_statistics(path):
        if backbone is None:
            raise UserError(f"{path}: feature statistics are for fid, which --metrics does not include")
        return reference_from_file(path, size, backbone)
    if is_prepared(path):
        reference = _prepared_reference(PreparedData.open(path))
    elif size[0] == size[1] and size[0] in RESOLUTIONS:
        settings = DataSettings(source=text, resolution=size[0], resize=resize)
        reference = _prepared_reference(_prepare(settings, quiet))
    else:
        images = from_files(path)
        reference = Reference(images.name, images)
    found = present(reference.images).size
    if found != size:
        here, there = ("x".join(map(str, each)) for each in (found, size))
        raise UserError(f"{text}: its images are {here}, the samples are {there}")
    return reference


def _prepare(settings: DataSettings, quiet: bool) -> PreparedData:
    return ensure_prepared(settings, report=(lambda line: None) if quiet else to_stderr)


def _prepared_reference(data: PreparedData) -> Reference:
    return Reference(data.manifest.source, from_prepared(data), resize=data.manifest.resize)


def _holds_statistics(path: Path) -> bool:
    """Whether this is an .npz of mean and covariance, by sagan or by other programs."""
    return path.is_file() and not {"mean", "mu"}.isdisjoint(member_names(path))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A generator to evaluate, with its entries in the protocol, and its step, if known."""

    generator: Generator
    weights: str = "averaged"
    batch_norm: str = "running"
    step: int | None = None


def candidates(source: Source, which: str, modes: bool) -> Iterator[Candidate]:
    """The generator of a source; with `modes` four variants of it."""
    if modes or source.kind == "checkpoint":
        checkpoint = source.path if source.kind == "checkpoint" else require_whole_checkpoint(source.path)
        step = int(verify_checkpoint(checkpoint)["step"])
        for weights, generator in load_generators(checkpoint).items():
            if modes or weights == "averaged":
                yield Candidate(generator, weights, "running", step)
            if modes:
                yield Candidate(with_standing_statistics(generator), weights, "standing", step)
        return
    folder = source.path
    if source.kind == "run" and which == "newest":
        folder = newest_snapshot(source.path)
    elif source.kind == "run":
        best = verify_checkpoint(require_whole_checkpoint(source.path))["best_step"]
        if best is None:
            raise UserError(f"{source.text}: no best step is known; set evaluate.best to the metric that decides")
        folder = source.path / "snapshots" / f"{best:08d}"
        if not folder.is_dir():
            raise UserError(f"{source.text}: no snapshot of its best step {best}")
    known = folder.exists() and folder.name.isdigit()
    yield Candidate(load_snapshot(str(folder)), step=int(folder.name) if known else None)


@click.command("evaluate")
@click.argument("source")
@click.option("--reference", metavar="DATA|STATISTICS", help="Real images. Default: the training data of a run.")
@click.option("--metrics", metavar="fid,kid,…", help="Default: fid; coherence for a generator of shapes.")
@click.option("--num", type=click.IntRange(2), metavar="N",
              help="Number of samples (default 10000), or of images from a folder (default all).")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True,
              help="Batch size of the feature extractor.")  # fmt: skip
@click.option("--labels", type=click.Choice(["reference", "uniform"]), default="reference", show_default=True,
              help="Class frequencies of the samples.")  # fmt: skip
@click.option("--truncation", type=float, help="Draw z from a normal truncated at this value.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True,
              help="Repeat with other seeds; gives mean ± std.")  # fmt: skip
@click.option("--which", type=click.Choice(["newest", "best"]), default="newest", show_default=True,
              help="Snapshot of a run.")  # fmt: skip
@click.option("--modes", is_flag=True, help="Compare averaged and raw weights, running and standing statistics.")
@click.option("--backbone", default="inception", show_default=True,
              help="Feature extractor: also vgg16, dinov2-…, clip-….")  # fmt: skip
@inception_weights
@click.option("--backbone-weights", type=Place(), metavar="FILE", help="Weights of another --backbone.")
@click.option("--vgg16-weights", type=Place(), metavar="FILE", help="Add precision and recall on VGG16.")
@click.option("--lpips", type=click.Choice(["alex", "vgg"]), default="alex", show_default=True, help="Trunk of LPIPS.")
@click.option("--lpips-weights", type=Place(), metavar="FILE", help="Weights of the trunk; default as above.")
@click.option("--out", type=Place(), metavar="FILE.json", help="Write the result here instead of into the run.")
@device
@as_json
def evaluate_cli(
    source: str, reference: str | None, metrics: str | None, num: int | None, batch_size: int, labels: str,
    truncation: float | None, repeats: int, which: str, modes: bool, backbone: str, inception_weights: Path | None,
    backbone_weights: Path | None, vgg16_weights: Path | None, lpips: str, lpips_weights: Path | None,
    out: Path | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Score SOURCE: a run, a snapshot, a Hub id, a folder of images or an .npz."""
    given, options = parse_source(source), click.get_current_context().params
    asked = None if metrics is None else parse_metrics(metrics)
    check_truncation(truncation)
    if out is not None:
        check_file_place(out)
    _check_options(given, options)
    _check_metrics(given, asked, options)

    rank, world = processes()
    chosen = pick_device(device)
    weights = inception_weights if backbone == "inception" else backbone_weights

    def prepare(metrics: Sequence[str], size: tuple[int, int]) -> tuple[Networks, Reference | None]:
        networks = load_networks(metrics, chosen, backbone, weights, lpips, lpips_weights, vgg16_weights)
        if reference is not None:
            return networks, open_reference(reference, size, "crop", networks.backbone, quiet=rank > 0)
        data = None
        if given.run is not None and any(METRICS[name].compares for name in metrics):
            data = load_config(given.run / "config.yaml").data
        if data is None or data.source is None:
            return networks, None
        return networks, _prepared_reference(_prepare(data, quiet=rank > 0))

    with process_group(world, chosen):
        results = []
        if given.holds_images:
            images = open_images(given)
            images = images if num is None else images.sample(num)
            networks, real = prepare(asked or ("fid",), images.size)
            store = _store(images.key, networks)
            results = [evaluate(images, real, asked or ("fid",), networks, batch_size, store=store)]
        prepared = None
        for candidate in () if given.holds_images else candidates(given, which, modes):
            generator = candidate.generator.to(chosen)
            names = asked or (("coherence",) if variant_of(generator.class_names) else ("fid",))
            if "coherence" in names and generator.class_names and not variant_of(generator.class_names):
                raise UserError(f"{source}: coherence is defined for generators of shapes and pairs only")
            prepared = prepared or prepare(names, (generator.resolution, generator.resolution))
            results.append(_evaluate_candidate(candidate, given, names, *prepared, options))
    if rank == 0:
        _write_result(given, [result for result in results if result is not None], out, as_json)


def _check_options(source: Source, options: dict[str, Any]) -> None:
    """UserError for options that exclude each other or do not apply to the source."""
    if options["modes"]:
        if options["repeats"] > 1:
            raise UserError("--repeats and --modes cannot be combined; find the best mode first, then repeat it")
        if source.kind not in ("run", "checkpoint"):
            raise UserError(
                f"{source.text}: --modes needs a run or a checkpoint; a snapshot holds the averaged generator only"
            )
    if options["which"] == "best" and (source.kind != "run" or options["modes"]):
        raise UserError("--which best: selects a snapshot of a run; give a run, without --modes")
    if source.holds_images:
        for name, default in {"truncation": None, "repeats": 1, "labels": "reference"}.items():
            if options[name] != default:
                raise UserError(f"--{name}: applies to generators, but {source.text} holds images")


def _check_metrics(source: Source, asked: Sequence[str] | None, options: dict[str, Any]) -> None:
    """UserError for weights that would not be used, and for metrics without a reference or a place for their image."""
    chosen = [METRICS[name] for name in asked or ("fid",)]
    on_features, inception = any(metric.on_features for metric in chosen), options["backbone"] == "inception"
    used = {
        "inception": on_features and inception,
        "backbone": on_features and not inception,
        "vgg16": any(metric.name in MANIFOLD for metric in chosen),
        "lpips": any(metric.needs == "lpips" for metric in chosen),
    }
    for name in used:
        if options[f"{name}_weights"] is not None and not used[name]:
            raise UserError(f"--{name}-weights: not used by these metrics; remove it, or change --metrics")
    for metric in chosen if asked else ():
        if metric.compares and options["reference"] is None and source.run is None:
            raise UserError(f"{metric.name}: compares with real images; name them with --reference")
    if "nearest" in (asked or ()) and options["out"] is None and source.run is None:
        raise UserError("nearest: writes an image; name the result with --out FILE.json")


def _evaluate_candidate(
    candidate: Candidate, source: Source, metrics: Sequence[str], networks: Networks, reference: Reference | None,
    options: dict[str, Any],
) -> EvaluationResult | None:  # fmt: skip
    """The result over all repeats; None on all processes but the first."""
    name = source.path.name + ("" if candidate.step is None else f" at step {candidate.step}")
    num, results = options["num"] or DEFAULT_NUM, []
    for repeat in range(options["repeats"]):
        settings = SampleSettings(
            num, repeat * num, options["labels"], options["truncation"], candidate.weights, candidate.batch_norm
        )
        samples = generated_images(candidate.generator, settings, reference, name)
        store = _store(samples.key, networks)
        result = evaluate(samples, reference, metrics, networks, options["batch_size"], settings, candidate.step, store)
        results += [] if result is None else [result]
    return over_repeats(results) if results else None


def _store(key: str, networks: Networks) -> Path | None:
    """Where features of these samples are kept during the evaluation, so that it can be resumed after a kill."""
    if networks.backbone is None:
        return None
    name = hashlib.sha256(f"{key} {identity(networks.backbone)}".encode()).hexdigest()[:32]
    return cache_folder() / "features" / f"samples-{name}"


def _write_result(source: Source, results: Sequence[EvaluationResult], out: Path | None, as_json: bool) -> None:
    """Save and print the result; of several modes the best one, with the scores of the others."""
    score = next((name for name in results[0].values if name in DIRECTION), None)
    best = results[0] if score is None else max(results, key=lambda one: DIRECTION[score] * one.values[score])
    record, lines, grid = best.to_dict(), [], None
    if len(results) > 1:
        record |= {"modes": {one.mode: one.values for one in results}, "best_mode": best.mode}
        width = max(len(one.mode) for one in results)
        lines.append("  ".join(["".ljust(width), *(name.rjust(10) for name in best.values)]))
        for one in results:
            cells = [f"{one.values[name]:10.4g}" for name in best.values] + ["      best"] * (one is best)
            lines.append("  ".join([one.mode.ljust(width), *cells]))
        lines.append("")
    if best.grid is not None:
        if out is not None:
            grid = out.with_name(f"{out.stem}-nearest.png")
        else:
            grid = present(source.run) / "samples" / f"{best.step or 0:08d}-nearest.png"
        save_png(grid, best.grid)
    if out is not None:
        write_json(out, record)
    elif source.run is not None:
        append_json_line(source.run / "metrics.jsonl", record)
    lines += [best.to_table()] + ([] if grid is None else [str(grid)])
    print(json.dumps(record) if as_json else "\n".join(lines))


@click.command("stats")
@click.argument("data")
@click.option("--out", type=Place(), required=True, metavar="FILE.npz", help="The statistics file.")
@click.option("--resolution", type=int, help="32, 64, 128 or 256; not needed for prepared data.")
@click.option("--resize", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
              help="For images that are not square.")  # fmt: skip
@click.option("--backbone", default="inception", show_default=True, help="Feature extractor.")
@click.option("--inception-weights", "--backbone-weights", "weights", type=Place(), metavar="FILE",
              help="Default: torch hub's cache, or a download.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True,
              help="Batch size of the feature extractor.")  # fmt: skip
@device
def stats_cli(
    data: str, out: Path, resolution: int | None, resize: Literal["crop", "squash"], backbone: str,
    weights: Path | None, batch_size: int, device: str,
) -> None:  # fmt: skip
    """Write the feature statistics of DATA to a file for `evaluate --reference`."""
    if out.suffix != ".npz":
        raise UserError(f"{out}: a statistics file is an .npz")
    check_file_place(out)
    if _holds_statistics(Path(data).expanduser()):
        raise UserError(f"{data}: holds statistics already")
    size = _resolution(data, resolution)
    rank, world = processes()
    chosen = pick_device(device)
    with process_group(world, chosen):
        network = load_backbone(backbone, weights, chosen)
        reference = open_reference(data, (size, size), resize, network, quiet=rank > 0)
        assert reference.images is not None
        found = reference_features(reference, network, batch_size)
        if found is not None and rank == 0:
            about = {
                "name": reference.name, "images": reference.images.key, "size": [size, size],
                "resize": reference.resize, **identity(network),
            }  # fmt: skip
            save_statistics(out, found.statistics, about)
            print(f"{out}: statistics of {found.statistics.count} images of {reference.name}")


def _resolution(data: str, resolution: int | None) -> int:
    prepared = PreparedData.open(data).manifest.resolution if is_prepared(data) else None
    if prepared is not None and resolution not in (None, prepared):
        raise UserError(f"{data}: prepared at {prepared}x{prepared}, --resolution says {resolution}")
    if prepared is None and resolution is None:
        raise UserError(f"{data}: not prepared; give the size of its images with --resolution")
    if prepared is None and resolution not in RESOLUTIONS:
        raise UserError(f"--resolution {resolution}: expected one of {', '.join(map(str, RESOLUTIONS))}")
    return prepared or present(resolution)

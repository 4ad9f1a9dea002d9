"""`sagan evaluate`: score a run, a snapshot or images. `sagan stats`: compute statistics of a reference."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import torch
from pydantic import AfterValidator, ConfigDict, Field

from sagan.config.load import load_config
from sagan.config.options import Place, as_json, check_truncation, device, inception_weights
from sagan.config.schema import RESOLUTIONS, DataSettings, Positive, Settings
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.prepare import ensure_prepared, source_of
from sagan.data.shapes import variant_of
from sagan.data.sources import cache_folder
from sagan.evaluation.evaluate import SampleSettings, evaluate, generated_images, load_networks
from sagan.evaluation.extractors import Backbone, load_backbone
from sagan.evaluation.features import (
    ImageSet,
    Reference,
    from_files,
    from_memory,
    from_prepared,
    identity,
    reference_features,
    reference_from_file,
)
from sagan.evaluation.fid import save_statistics
from sagan.evaluation.registry import MANIFOLD, METRICS, Networks, parse_metrics, present
from sagan.evaluation.result import Scores, best_mode, over_repeats
from sagan.models.generator import Generator
from sagan.models.inference import with_standing_statistics
from sagan.runs.checkpoint import load_generators, require_whole_checkpoint, verify_checkpoint
from sagan.runs.snapshot import load_snapshot, newest_snapshot
from sagan.sampling.sampler import pick_device, processes
from sagan.utils.errors import UserError
from sagan.utils.images import save_png
from sagan.utils.io import append_json_line, check_file_place, expand_home, member_names, write_json
from sagan.utils.progress import say
from sagan.utils.system import from_first, process_group

DEFAULT_NUM = 10_000


@dataclass(frozen=True)
class Source:
    """SOURCE and its kind; `run`: the run folder that it is or belongs to; `memory`: a generator, or images."""

    text: str
    kind: Literal["run", "checkpoint", "snapshot", "prepared", "files", "memory", "images"]
    run: Path | None = None
    memory: Any = None

    @property
    def path(self) -> Path:
        return Path(self.text)

    @property
    def holds_images(self) -> bool:
        return self.kind in ("prepared", "files", "images")


def parse_source(source: Any) -> Source:
    """Find the kind of SOURCE from its content; a text that is not a path is a Hub id, anything else is in memory."""
    if isinstance(source, Generator):
        return Source("the generator in memory", "memory", memory=source)
    if not isinstance(source, str | os.PathLike):
        return Source("the images in memory", "images", memory=source)
    text = os.fspath(source)
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
    if source.kind == "images":
        return from_memory(source.memory)
    return from_prepared(PreparedData.open(source.path)) if source.kind == "prepared" else from_files(source.path)


def open_reference(
    data: Any, size: tuple[int, int], resize: Literal["crop", "squash"], backbone: Backbone | None, quiet: bool
) -> Reference:
    """A reference at the samples' size (H, W): statistics, prepared data, or a source, which is prepared first."""
    square = size[0] == size[1] and size[0] in RESOLUTIONS
    if not isinstance(data, str | os.PathLike):
        settings = DataSettings(resolution=size[0] if square else RESOLUTIONS[0], resize=resize)
        if square:
            return _prepared_reference(PreparedData.open(source_of(data, settings)))
        images = from_memory(data)
        return _of_size(Reference(images.name, images), size, images.name)
    text = os.fspath(data)
    path = expand_home(text)
    if _holds_statistics(path):
        if backbone is None:
            raise UserError(f"{path}: feature statistics are for fid, which --metrics does not include")
        return reference_from_file(path, size, backbone)
    if is_prepared(path):
        reference = _prepared_reference(PreparedData.open(path))
    elif square:
        settings = DataSettings(source=text, resolution=size[0], resize=resize)
        reference = _prepared_reference(_prepare(settings, quiet))
    else:
        images = from_files(path)
        reference = Reference(images.name, images)
    return _of_size(reference, size, text)


def _of_size(reference: Reference, size: tuple[int, int], name: str) -> Reference:
    """The reference. UserError if its images are not of this size."""
    found = present(reference.images).size
    if found != size:
        here, there = ("x".join(map(str, each)) for each in (found, size))
        raise UserError(f"{name}: its images are {here}, the samples are {there}")
    return reference


def _prepare(settings: DataSettings, quiet: bool) -> PreparedData:
    return ensure_prepared(settings, report=(lambda line: None) if quiet else say)


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
    if source.kind == "memory":
        yield Candidate(source.memory)
        return
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
def evaluate_cli(source: str, metrics: str | None, as_json: bool, **options: Any) -> None:
    """Score SOURCE: a run, a snapshot, a Hub id, a folder of images or an .npz."""
    given, asked = parse_source(source), None if metrics is None else parse_metrics(metrics)
    if "nearest" in (asked or ()) and options["out"] is None and given.run is None:
        raise UserError("nearest: writes an image; name the result with --out FILE.json")
    found = score(given, Evaluation(metrics=asked, **options))
    if processes()[0] == 0:
        grid = record(given, found, options["out"])
        lines = [found.to_table(), *([] if grid is None else [str(grid)])]
        print(json.dumps(found.to_dict()) if as_json else "\n".join(lines))


Home = Annotated[Path, AfterValidator(expand_home)]


class Evaluation(Settings):
    """The options of `sagan evaluate`. `reference`: also data in memory."""

    model_config = ConfigDict(allow_inf_nan=True)  # `check_truncation` refuses them
    metrics: tuple[str, ...] | None = None
    reference: Any = None
    num: Annotated[int, Field(ge=2)] | None = None
    batch_size: Positive = 64
    labels: Literal["reference", "uniform"] = "reference"
    truncation: float | None = None
    repeats: Positive = 1
    which: Literal["newest", "best"] = "newest"
    modes: bool = False
    backbone: str = "inception"
    inception_weights: Home | None = None
    backbone_weights: Home | None = None
    vgg16_weights: Home | None = None
    lpips: Literal["alex", "vgg"] = "alex"
    lpips_weights: Home | None = None
    out: Home | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def score(source: Source, options: Evaluation) -> Scores:
    """Score a source; of several modes, the best one. Every process calls it and gets the scores."""
    asked = options.metrics
    check_truncation(options.truncation)
    if options.out is not None:
        check_file_place(options.out)
    _check_options(source, options)
    _check_metrics(source, asked, options)
    world = processes()[1]
    chosen = pick_device(options.device)
    with process_group(world, chosen):
        if source.holds_images:
            images, names = open_images(source), asked or ("fid",)
            images = images if options.num is None else images.sample(options.num)
            networks, real = _networks_and_reference(source, names, images.size, chosen, options)
            store = _store(images.key, networks)
            return present(from_first(evaluate(images, real, names, networks, options.batch_size, store=store)))
        prepared, results = None, []
        for candidate in candidates(source, options.which, options.modes):
            generator = candidate.generator if source.kind == "memory" else candidate.generator.to(chosen)
            names = asked or (("coherence",) if variant_of(generator.class_names) else ("fid",))
            if "coherence" in names and generator.class_names and not variant_of(generator.class_names):
                raise UserError(f"{source.text}: coherence is defined for generators of shapes and pairs only")
            size = (generator.resolution, generator.resolution)
            prepared = prepared or _networks_and_reference(source, names, size, chosen, options)
            found = from_first(_evaluate_candidate(candidate, source, names, *prepared, options))
            results.append(present(found))
        return best_mode(results)


def _networks_and_reference(
    source: Source, metrics: Sequence[str], size: tuple[int, int], device: torch.device, options: Evaluation
) -> tuple[Networks, Reference | None]:
    """What the metrics on samples of `size` (H, W) need: networks, and real images if they are given or known."""
    weights = options.inception_weights if options.backbone == "inception" else options.backbone_weights
    trunk = options.lpips, options.lpips_weights
    networks = load_networks(metrics, device, options.backbone, weights, *trunk, options.vgg16_weights)
    quiet = processes()[0] > 0
    if options.reference is not None:
        return networks, open_reference(options.reference, size, "crop", networks.backbone, quiet)
    data = None
    if source.run is not None and any(METRICS[name].compares for name in metrics):
        data = load_config(source.run / "config.yaml").data
    if data is None or data.source is None:
        return networks, None
    return networks, _prepared_reference(_prepare(data, quiet))


def _check_options(source: Source, options: Evaluation) -> None:
    """UserError for options that exclude each other or do not apply to the source."""
    if options.modes:
        if options.repeats > 1:
            raise UserError("--repeats and --modes cannot be combined; find the best mode first, then repeat it")
        if source.kind not in ("run", "checkpoint"):
            raise UserError(
                f"{source.text}: --modes needs a run or a checkpoint; a snapshot holds the averaged generator only"
            )
    if options.which == "best" and (source.kind != "run" or options.modes):
        raise UserError("--which best: selects a snapshot of a run; give a run, without --modes")
    if source.holds_images:
        for name, default in {"truncation": None, "repeats": 1, "labels": "reference"}.items():
            if getattr(options, name) != default:
                raise UserError(f"--{name}: applies to generators, but {source.text} holds images")


def _check_metrics(source: Source, asked: Sequence[str] | None, options: Evaluation) -> None:
    """UserError for weights that would not be used, and for metrics without a reference or a place for their image."""
    chosen = [METRICS[name] for name in asked or ("fid",)]
    on_features, inception = any(metric.on_features for metric in chosen), options.backbone == "inception"
    used = {
        "inception": on_features and inception,
        "backbone": on_features and not inception,
        "vgg16": any(metric.name in MANIFOLD for metric in chosen),
        "lpips": any(metric.needs == "lpips" for metric in chosen),
    }
    for name in used:
        if getattr(options, f"{name}_weights") is not None and not used[name]:
            raise UserError(f"--{name}-weights: not used by these metrics; remove it, or change --metrics")
    for metric in chosen if asked else ():
        if metric.compares and options.reference is None and source.run is None:
            raise UserError(f"{metric.name}: compares with real images; name them with --reference")


def _evaluate_candidate(
    candidate: Candidate, source: Source, metrics: Sequence[str], networks: Networks, reference: Reference | None,
    options: Evaluation,
) -> Scores | None:  # fmt: skip
    """The result over all repeats; None on all processes but the first."""
    name = source.path.name + ("" if candidate.step is None else f" at step {candidate.step}")
    num, results = options.num or DEFAULT_NUM, []
    for repeat in range(options.repeats):
        settings = SampleSettings(
            num, repeat * num, options.labels, options.truncation, candidate.weights, candidate.batch_norm
        )
        samples = generated_images(candidate.generator, settings, reference, name)
        store = _store(samples.key, networks)
        result = evaluate(samples, reference, metrics, networks, options.batch_size, settings, candidate.step, store)
        results += [] if result is None else [result]
    return over_repeats(results) if results else None


def _store(key: str, networks: Networks) -> Path | None:
    """Where features of these samples are kept during the evaluation, so that it can be resumed after a kill."""
    if networks.backbone is None:
        return None
    name = hashlib.sha256(f"{key} {identity(networks.backbone)}".encode()).hexdigest()[:32]
    return cache_folder() / "features" / f"samples-{name}"


def record(source: Source, scores: Scores, out: Path | None) -> Path | None:
    """Write scores to `out`, or append them to metrics.jsonl of a run. Returns the path of their image, if any."""
    if out is not None:
        grid = out.with_name(f"{out.stem}-nearest.png")
    elif source.run is not None:
        grid = source.run / "samples" / f"{scores.step or 0:08d}-nearest.png"
    else:
        return None
    if scores.grid is not None:
        save_png(grid, scores.grid)
    if out is not None:
        write_json(out, scores.to_dict())
    elif source.run is not None:
        append_json_line(source.run / "metrics.jsonl", scores.to_dict())
    return None if scores.grid is None else grid


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

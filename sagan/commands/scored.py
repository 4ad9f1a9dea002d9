"""The work of `sagan evaluate`: networks, samples and reference brought together, one card a candidate."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sagan.checkpoint import require_whole_checkpoint, verify_checkpoint
from sagan.commands.evaluate_options import Options
from sagan.commands.measured import Source, open_files, open_reference
from sagan.config import load_config
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.data.shapes import CLASSES
from sagan.data.source import cache_folder
from sagan.errors import UserError
from sagan.evaluation.card import Card, over_repeats
from sagan.evaluation.choices import COMPARED
from sagan.evaluation.image_set import from_prepared
from sagan.evaluation.metrics import Networks
from sagan.evaluation.reference import Reference, identity
from sagan.modes import load_generators, with_standing_statistics
from sagan.networks import Generator
from sagan.scoring import Drawing, drawn_images, load_networks, score
from sagan.snapshot import load_snapshot, newest_snapshot

DEFAULT_NUM = 10_000


@dataclass(frozen=True, eq=False)
class Candidate:
    """A generator to be scored, what the protocol says of it, and the step of its snapshot or checkpoint, if known."""

    generator: Generator
    weights: str = "averaged"
    batch_norm: str = "running"
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """A card, the step it belongs to, and the sheet of nearest images where there is one."""

    card: Card
    step: int | None = None
    sheet: np.ndarray | None = None

    @property
    def mode(self) -> str:
        return f"{self.card.protocol.weights} weights, {self.card.protocol.batch_norm} statistics"


def score_files(source: Source, options: Options, metrics: Sequence[str], device: torch.device) -> list[Result]:
    """The card of a folder, an .npz or prepared data; [] off the first process."""
    images = open_files(source)
    samples = images if options.num is None else images.sample(options.num)
    networks = _networks(options, metrics, device)
    reference = _reference(options, source, samples.size, metrics, networks)
    store = _store(samples.key, networks)
    found = score(samples, reference, metrics, networks, options.batch_size, store=store)
    return [] if found is None else [Result(found.card, None, found.sheet)]


def score_generators(
    source: Source, options: Options, metrics: Sequence[str] | None, device: torch.device
) -> list[Result]:
    """One card a candidate (four with --modes), repeats brought together; [] off the first process."""
    results = []
    networks, reference = None, None
    for candidate in _candidates(source, options):
        generator = candidate.generator.to(device)
        if metrics is None:
            metrics = ("coherence",) if generator.class_names == CLASSES else ("fid",)
        if "coherence" in metrics and generator.class_names not in (CLASSES, ()):
            raise UserError(f"{options.source}: was not trained on shapes; coherence is defined on them alone")
        networks = networks or _networks(options, metrics, device)
        size = (generator.resolution, generator.resolution)
        reference = reference or _reference(options, source, size, metrics, networks)
        results += _score_candidate(source, options, metrics, networks, reference, candidate)
    return results


def _score_candidate(
    source: Source,
    options: Options,
    metrics: Sequence[str],
    networks: Networks,
    reference: Reference | None,
    candidate: Candidate,
) -> list[Result]:
    num = options.num or DEFAULT_NUM
    cards, sheet = [], None
    for repeat in range(options.repeats):
        drawing = Drawing(
            num, repeat * num, options.labels, options.truncation, candidate.weights, candidate.batch_norm
        )
        samples = drawn_images(candidate.generator, drawing, reference, _name(source, candidate))
        found = score(samples, reference, metrics, networks, options.batch_size, drawing, _store(samples.key, networks))
        if found is not None:
            cards.append(found.card)
            sheet = found.sheet if sheet is None else sheet
    return [Result(over_repeats(cards), candidate.step, sheet)] if cards else []


def _networks(options: Options, metrics: Sequence[str], device: torch.device) -> Networks:
    weights = options.inception_weights if options.backbone == "inception" else options.backbone_weights
    return load_networks(
        metrics, device, options.backbone, weights, options.lpips, options.lpips_weights, options.vgg16_weights
    )


def _reference(
    options: Options, source: Source, size: tuple[int, int], metrics: Sequence[str], networks: Networks
) -> Reference | None:
    """The reference that was named, or the training data of a run where a metric needs one."""
    if options.reference is not None:
        return open_reference(options.reference, size, "crop", networks.backbone, options.quiet)
    if source.run is None or not any(name in COMPARED for name in metrics):
        return None
    data = load_config(source.run / "config.yaml").data
    if data.source is None:
        return None
    prepared = ensure_prepared(data, report=(lambda line: None) if options.quiet else to_stderr)
    return Reference(prepared.manifest.source, from_prepared(prepared), resize=prepared.manifest.resize)


def _candidates(source: Source, options: Options) -> Iterator[Candidate]:
    if options.modes:
        checkpoint = source.path if source.kind == "checkpoint" else require_whole_checkpoint(source.path)
        step = int(verify_checkpoint(checkpoint)["step"])
        for weights, generator in load_generators(checkpoint).items():
            yield Candidate(generator, weights, "running", step)
            yield Candidate(with_standing_statistics(generator), weights, "standing", step)
        return
    if source.kind == "checkpoint":
        step = int(verify_checkpoint(source.path)["step"])
        yield Candidate(load_generators(source.path)["averaged"], step=step)
        return
    place = _snapshot(source, options.which)
    step = int(place.name) if place is not None and place.name.isdigit() else None
    yield Candidate(load_snapshot(source.text if place is None else place), step=step)


def _snapshot(source: Source, which: str) -> Path | None:
    """The folder of the snapshot; None for a Hub id."""
    if source.kind != "run":
        return source.path if source.path.exists() else None
    if which == "newest":
        return newest_snapshot(source.path)
    best = verify_checkpoint(require_whole_checkpoint(source.path))["best_step"]
    if best is None:
        raise UserError(f"{source.text}: no best step is known (evaluate.best names the metric that decides)")
    place = source.path / "snapshots" / f"{best:08d}"
    if not place.is_dir():
        raise UserError(f"{source.text}: no snapshot of its best step {best}")
    return place


def _name(source: Source, candidate: Candidate) -> str:
    step = "" if candidate.step is None else f" at step {candidate.step}"
    return f"{source.path.name}{step}"


def _store(key: str, networks: Networks) -> Path | None:
    """Where features of these samples are kept while they are computed, so that a killed evaluation goes on."""
    if networks.backbone is None:
        return None
    name = hashlib.sha256(f"{key} {identity(networks.backbone)}".encode()).hexdigest()[:32]
    return cache_folder() / "features" / f"samples-{name}"

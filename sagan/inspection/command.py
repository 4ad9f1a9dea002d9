"""`sagan attend`: show what generator and discriminator attend to, as figures, arrays, a page, animations, numbers."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sagan.config.load import load_config
from sagan.config.options import Place, as_classes, parse_seeds
from sagan.config.options import as_json as json_option
from sagan.config.schema import ATTENTION_RESOLUTION
from sagan.data.decode import Unusable, convert
from sagan.data.prepare import ensure_prepared
from sagan.data.shapes import Variant, variant_of
from sagan.data.sources import FolderSource, MemorySource, check_labels
from sagan.evaluation.coherence import clear_objects, coherence, find_objects
from sagan.evaluation.command import Source, parse_source
from sagan.evaluation.features import from_prepared
from sagan.evaluation.lpips import load_perceptual
from sagan.inspection import health, intervention, record
from sagan.inspection.animate import path_frames, path_points, snapshot_frames
from sagan.inspection.attention import Attention
from sagan.inspection.figure import attention_figure
from sagan.inspection.page import pack_layers, write_page
from sagan.inspection.record import Points, Recording
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.runs.checkpoint import load_discriminator, load_generators, require_whole_checkpoint
from sagan.runs.snapshot import load_snapshot, snapshots
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.errors import UserError
from sagan.utils.images import save_animation, save_png
from sagan.utils.io import check_folder_place, make_folder

COLUMNS = (
    "gamma", "entropy", "uniform_entropy", "distance", "uniform_distance", "far_mass", "uniform_far_mass",
    "variation", "uniform_variation", "untrained",
)  # fmt: skip
COHERENCE_SAMPLES = 256
MAX_POINTS, MAX_IMAGES = 32, 128  # no figure of more is readable
POINTS = {"random": partial(record.random_points, 5), "grid": partial(record.grid_points, 9)}
FRAMES, FRAMES_PER_SECOND = 48, 12  # of a moving point
SNAPSHOTS_PER_SECOND = 2


@click.command("attend")
@click.argument("source")
@click.option("--out", type=Place(), required=True, help="Output folder.")
@click.option("--seeds", default="0-7", show_default=True, metavar="0-7", help="Seeds of the images.")
@click.option("--classes", metavar="0,3|NAMES", help="Show every seed in each of these classes.")
@click.option("--points", metavar="K|random|grid", help="Query points per image.  [default: 5 salient points]")
@click.option("--at", metavar="ROW,COL;…", help="Query points in image pixels, instead of --points.")
@click.option("--network", type=click.Choice(["generator", "discriminator", "both"]), default="generator",
              show_default=True, help="The discriminator needs a run or a checkpoint.")  # fmt: skip
@click.option("--images", type=Place(), metavar="DIR",
              help="Real images for the discriminator.  [default: the run's data]")  # fmt: skip
@click.option("--layers", metavar="NAMES", help="Only these maps, such as attention.16x16.")
@click.option("--html", is_flag=True, help="Also write an interactive page.")
@click.option("--causal", is_flag=True, help="Also show the effect of cutting the attention to each key.")
@click.option("--animate", type=click.Choice(["snapshots", "path"]),
              help="Animate the maps over the run's snapshots, or of a moving point.")  # fmt: skip
@click.option("--mp4", is_flag=True, help="Write the animation as .mp4 instead of .gif.")
@click.option("--smooth", is_flag=True, help="Interpolate the cells of the maps.")
@click.option("--tile", type=click.IntRange(64, 1024), default=128, show_default=True,
              help="Size of an image in the figure, in pixels.")  # fmt: skip
@click.option("--lpips-weights", type=Place(), metavar="FILE", help="Also measure the ablation by LPIPS.")
@json_option
def attend_cli(
    source: str, out: Path, seeds: str, classes: str | None, points: str | None, at: str | None, network: str,
    images: Path | None, layers: str | None, html: bool, causal: bool, animate: str | None, mp4: bool, smooth: bool,
    tile: int, lpips_weights: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what the networks of SOURCE (a run, a checkpoint, a snapshot or a Hub id) attend to."""
    found = parse_source(source)
    check_options(found, network, points, at, images, html, animate, mp4)
    chosen, pixels = parse_points(points or "5"), None if at is None else parse_pixels(at)
    check_folder_place(out)
    subject = open_subject(found, parse_seeds(seeds), classes, network)
    if pixels is not None:
        chosen = record.pixel_points(torch.tensor(pixels), subject.generator.resolution, subject.generator.resolution)

    everything = record_networks(subject, chosen, network, images)
    shown = {name: attention.select(layers) for name, attention in everything.items()}
    recordings = {name: attention.recording for name, attention in shown.items()}
    page = (
        pack_layers(subject.generator, subject.z, subject.labels, everything["attention"].recording) if html else None
    )
    make_folder(out)
    written = [path for attention in shown.values() for path in attention.save(out, smooth, tile)]
    report, lines = summarize(subject, shown)
    if network != "discriminator":
        written.append(out / "ablation.png")
        report["ablation"] = write_ablation(written[-1], subject, lpips_weights)
        lines += ["", *describe_ablation(report["ablation"])]
    if causal:
        draw = partial(attention_figure, smooth=smooth, tile=tile)
        report["causal"], text, paths = write_causal(out, subject, recordings, draw)
        lines, written = lines + text, written + paths
    if page is not None:
        written.append(out / "attention.html")
        about = report["attention"], everything["attention"].source
        write_page(written[-1], everything["attention"].recording, page, *about)
    if animate is not None:
        written.append(out / f"attention-{animate}.{'mp4' if mp4 else 'gif'}")
        write_animation(written[-1], subject, chosen, animate, layers, smooth, tile)
    print(json.dumps(report) if as_json else "\n".join([*lines, "", *map(str, written)]))


def check_options(
    source: Source, network: str, points: object, at: object, images: object, html: bool,
    animate: str | None, mp4: bool,
) -> None:  # fmt: skip
    """UserError for options that do not fit the source or each other."""
    for wrong, message in (
        (source.holds_images,
         f"{source.text}: holds images; give a run, a checkpoint, a snapshot or a Hub id"),
        (points and at, "--points and --at exclude each other; give one of them"),
        (network != "generator" and source.kind not in ("run", "checkpoint"),
         f"{source.text}: a snapshot holds the generator alone; give its run or a checkpoint"),
        (images is not None and network == "generator", "--images needs --network discriminator or both"),
        (html and network == "discriminator", "--html shows the generator; give --network generator or both"),
        (mp4 and animate is None, "--mp4 needs --animate snapshots or path"),
        (animate == "snapshots" and source.kind != "run", "--animate snapshots needs a run"),
    ):  # fmt: skip
        if wrong:
            raise UserError(message)


def parse_points(text: str) -> Points:
    """Query points of `--points`: a number from 1 to MAX_POINTS, `random` or `grid`. UserError for anything else."""
    if text in POINTS:
        return POINTS[text]()
    number = int(text) if re.fullmatch("[0-9]{1,8}", text) else 0
    if not 1 <= number <= MAX_POINTS:
        raise UserError(f"--points {text}: expected a number from 1 to {MAX_POINTS}, random or grid")
    return partial(record.salient_points, k=number)


def parse_pixels(text: str) -> list[tuple[int, int]]:
    """ "3,4;10,20" -> [(3, 4), (10, 20)], (row, column). UserError for anything else."""
    pixels = []
    for part in text.split(";"):
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*,\s*([0-9]{1,6})\s*", part)
        if match is None:
            raise UserError(f"--at {part.strip()!r}: expected ROW,COLUMN pairs, such as 8,8;20,12")
        pixels.append((int(match[1]), int(match[2])))
    if len(pixels) > MAX_POINTS:
        raise UserError(f"--at: {len(pixels)} points, a figure shows at most {MAX_POINTS}")
    return pixels


@dataclass(frozen=True, eq=False)
class Subject:
    """The networks, and the inputs of each image: z (B, z_dim), labels (B,) or None, and its seed."""

    source: Source
    generator: Generator
    discriminator: Discriminator | None
    z: Tensor
    labels: Tensor | None
    seeds: list[int]


def open_generator(source: Source) -> Generator:
    """The averaged generator of a source."""
    if source.kind == "memory":
        return source.memory
    return load_generators(source.path)["averaged"] if source.kind == "checkpoint" else load_snapshot(source.text)


def open_subject(source: Source, seeds: Sequence[int], classes: Any, network: str) -> Subject:
    """Load the networks. UserError if one is missing or has no attention."""
    checkpoint = source.path if source.kind == "checkpoint" else None
    generator = open_generator(source)
    networks: dict[str, Any] = {} if network == "discriminator" else {"generator": generator}
    if network != "generator":
        networks["discriminator"] = load_discriminator(checkpoint or require_whole_checkpoint(source.path))
    for name, found in networks.items():
        if not health.has_maps(found):
            raise UserError(
                f"{source.text}: this {name} has no attention, so there is nothing to show; train one with, "
                f"for example, --set {name}.attention.{ATTENTION_RESOLUTION[found.resolution]}=self_attention"
            )
    chosen = None if classes is None else as_classes(classes, generator.class_names, generator.num_classes)
    each_seed = [seed for seed in seeds for _ in chosen or [None]]
    if len(each_seed) > MAX_IMAGES:
        raise UserError(f"{len(each_seed)} images requested; a figure shows at most {MAX_IMAGES}")
    labels = default_labels(seeds, generator.num_classes) if chosen is None else torch.tensor(chosen).repeat(len(seeds))
    z = latents(each_seed, generator.z_dim)
    return Subject(source, generator, networks.get("discriminator"), z, labels, each_seed)


def record_networks(subject: Subject, points: Points, network: str, data: Any) -> dict[str, Attention]:
    """Maps of the generator, and of the discriminator on generated and on real images, by file name."""
    generator, seen, name = subject.generator, {}, subject.source.path.name
    if network != "discriminator":
        inputs = subject.z, subject.labels
        recording = record.attention_of(generator, *inputs, subject.seeds, points, True)
        seen["attention"] = Attention(recording, generator, *inputs, source=name)
    if subject.discriminator is not None:
        attend = partial(record.discriminator_attention, subject.discriminator, class_names=generator.class_names)
        fakes = torch.cat(list(generate(generator, subject.z, subject.labels))).numpy()
        reals, labels = _real_images(subject, data)
        for kind, recording in (
            ("discriminator-generated", attend(fakes, subject.labels, subject.seeds, points)),
            ("discriminator-real", attend(reals, labels, range(len(reals)), points)),
        ):
            seen[kind] = Attention(recording, subject.discriminator, name=kind, source=name)
    return seen


def _real_images(subject: Subject, data: Any) -> tuple[np.ndarray, Tensor | None]:
    """As many real images as generated ones, uint8 (B, R, R, 3), and their labels (B,) if there are classes."""
    if data is not None:
        images, labels = _read_images(data, subject.generator, len(subject.seeds))
    else:
        assert subject.source.run is not None
        settings = load_config(subject.source.run / "config.yaml").data
        data = from_prepared(ensure_prepared(settings, report=lambda line: None))
        data = data.sample(min(len(subject.seeds), data.count))
        images, labels = data.read(np.arange(data.count)).numpy(), data.labels
    return images, None if labels is None or not subject.generator.num_classes else torch.from_numpy(labels)


def _read_images(data: Any, generator: Generator, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`count` evenly spaced images of a folder or in memory, at the generator's resolution, and their labels."""
    if not isinstance(data, str | os.PathLike):
        images, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        source, name, given = MemorySource(images), "images", labels
    else:
        source, name, given = _folder(Path(data)), os.fspath(data), None
    places, own = {name: i for i, name in enumerate(generator.class_names)}, source.class_names()
    if given is not None:
        known = check_labels("labels", np.asarray(given), len(source), generator.num_classes)
    elif generator.num_classes and not (own and set(own) <= places.keys()):
        raise UserError(
            f"{name}: the discriminator needs the class of every image; "
            f"give sub-folders named after its classes: {', '.join(generator.class_names)}"
        )
    else:
        known = None
    items = list(source.items())
    step = max(1, len(items) // count)
    images, labels = [], []
    for index in range(0, len(items), step)[:count]:
        try:
            pixels, label, _ = convert(items[index], generator.resolution, "crop", generator.image_channels)
        except Unusable as error:
            raise UserError(f"{Path(name) / items[index].name}: {error.reason}") from None
        images.append(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        classes = generator.num_classes
        labels.append(known[index] if known is not None else places[own[label]] if classes else 0)
    return np.stack(images), np.array(labels, np.int64)


def _folder(folder: Path) -> FolderSource:
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; give a folder of images")
    return FolderSource(folder)


def summarize(subject: Subject, shown: dict[str, Attention]) -> tuple[dict[str, Any], list[str]]:
    """The numbers of all recordings, for JSON and as lines of text."""
    report: dict[str, Any] = {"images": len(subject.seeds)}
    lines: list[str] = []
    for name, attention in shown.items():
        recording, numbers = attention.recording, attention.health
        variant = variant_of(recording.class_names)
        partners = partner_numbers(recording, variant) if variant else {}
        lines += [*([""] if lines else []), *([name] if len(shown) > 1 else [])]
        lines += [health.describe(layer, numbers[layer]) for layer in numbers]
        lines += [describe_partners(layer, mass) for layer, mass in partners.items()]
        if variant and not partners:
            lines.append("attention to the partner is not measured: no query point lies on a clear object")
        lines += ["", health_table(numbers)]
        report[name] = numbers
        report["partner" if name == "attention" else f"{name}-partner"] = partners
    return report, lines


def health_table(numbers: dict[str, dict[str, float]]) -> str:
    """One row per map. Each column `uniform` is the value of uniform attention for the column before it."""
    table = Table(box=None, pad_edge=False)
    table.add_column()
    for column in COLUMNS:
        table.add_column("uniform" if column.startswith("uniform") else column, justify="right", no_wrap=True)
    for name, row in numbers.items():
        table.add_row(name, *(f"{row[column]:.3g}" if column in row else "-" for column in COLUMNS))
    console = Console(width=1000, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def describe_partners(layer: str, mass: dict[str, float]) -> str:
    """The result of `partner_mass` as a sentence."""
    percent = {name: f"{100 * value:.1f} %" for name, value in mass.items()}
    others = f", other pair: {percent['others']}, chance: {percent['chance_others']}" if "others" in percent else ""
    return (
        f"{layer}: {percent['mass']} of the attention of {mass['points']} points on an object falls on its partner "
        f"(chance: {percent['chance']}, own object: {percent['own']}{others})"
    )


def partner_numbers(recording: Recording, variant: Variant) -> dict[str, dict[str, float]]:
    """On `shapes` and `pairs`: how much attention of points on an object falls on its partner."""
    which, objects = clear_objects(find_objects(recording.images), variant)
    resolution = recording.images.shape[1]
    masks = np.zeros((len(recording.images), variant.objects, resolution, resolution), bool)
    masks[which] = health.masks_of(objects, variant, resolution)
    return health.partner_mass(recording, masks, variant)


def write_causal(
    out: Path, subject: Subject, recordings: dict[str, Recording], draw: Callable[[Recording], np.ndarray]
) -> tuple[dict[str, Any], list[str], list[Path]]:
    """Write figures and arrays of the causal maps of all recordings: numbers, the same as text, and paths."""
    report, lines, written = {}, [], []
    for name, recording in recordings.items():
        network = subject.generator if name == "attention" else subject.discriminator
        assert network is not None
        labels = None if recording.labels.min() < 0 else torch.from_numpy(recording.labels)
        shown, found = intervention.causal_recording(network, recording, subject.z, labels)
        report[name] = {layer: maps.numbers() for layer, maps in found.items()}
        lines += ["", f"causal-{name}" if found else f"{name}: no map is a softmax over keys, so no key can be cut"]
        for layer, maps in found.items():
            lines.append(f"{layer}: {maps.describe()}")
            if name == "attention" and variant_of(subject.generator.class_names):
                cuts = intervention.partner_cut(subject.generator, layer)
                report[name][layer]["hue_agreement"] = {cut: vars(agreement) for cut, agreement in cuts.items()}
                lines += [f"  hue agreement, {cut}: {agreement}" for cut, agreement in cuts.items()] or [
                    "  hue agreement is not measured: too few images have clear objects"
                ]
        if found:
            written += [out / f"causal-{name}.png", out / f"causal-{name}.npz"]
            save_png(written[-2], draw(shown))
            record.save_npz(written[-1], shown)
    return report, lines, written


def write_ablation(path: Path, subject: Subject, lpips_weights: Path | None) -> dict[str, Any]:
    """Write images with attention, without, and their difference. Returns the size of the difference."""
    generator = subject.generator
    with_it, without = health.ablate(generator, subject.z, subject.labels)
    save_png(path, health.ablation_figure(with_it, without))
    change: dict[str, Any] = {"grey_levels": float(np.abs(with_it.astype(int) - without).mean())}
    if lpips_weights is not None:
        perceptual = load_perceptual("alex", lpips_weights)
        change["lpips"] = float(perceptual.distance(torch.from_numpy(with_it), torch.from_numpy(without)).mean())
    if variant := variant_of(generator.class_names):
        seeds = range(COHERENCE_SAMPLES)
        labels = default_labels(seeds, generator.num_classes)
        assert labels is not None
        images = health.ablate(generator, latents(seeds, generator.z_dim), labels)
        change["with"], change["without"] = (coherence(each, labels.numpy(), variant).to_dict() for each in images)
    return change


def describe_ablation(change: dict[str, Any]) -> list[str]:
    """The result of `write_ablation` as text."""
    lpips = f", LPIPS {change['lpips']:.3f}" if "lpips" in change else ""
    lines = [f"setting every gamma to 0 changes the images by {change['grey_levels']:.1f}/255 on average{lpips}"]
    if "without" in change:
        for name in ("coherence", "two_objects", "four_objects", "hue_agreement", "shape_agreement"):
            if name not in change["with"]:
                continue
            with_it, without = change["with"][name], change["without"][name]
            lines.append(f"  {name.replace('_', ' ')}: {with_it:.3f} with attention, {without:.3f} without")
    return lines


def write_animation(
    path: Path, subject: Subject, points: Points, kind: str, layers: str | None, smooth: bool, tile: int
) -> None:
    """`path`: a moving point. `snapshots`: the same seeds and points over the snapshots of a run."""
    attend = partial(record.attention_of, z=subject.z, labels=subject.labels, seeds=subject.seeds)
    if kind == "path":
        recording = attend(subject.generator, points=path_points(FRAMES), progress=True)
        frames = path_frames(Attention(recording, subject.generator).select(layers).recording, tile, smooth)
        save_animation(path, frames, FRAMES_PER_SECOND)
        return
    # Points are chosen on the newest images: points that change between snapshots could not be compared.
    fixed = attend(subject.generator, points=points, progress=True).points
    folders = snapshots(subject.source.path)
    each = [Attention(attend(load_snapshot(folder), points=fixed), subject.generator) for folder in folders]
    recordings = [attention.select(layers).recording for attention in each]
    frames = snapshot_frames(recordings, [int(folder.name) for folder in folders], tile, smooth)
    save_animation(path, frames, SNAPSHOTS_PER_SECOND)

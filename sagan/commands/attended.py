"""The networks and images that `sagan attend` looks at, and what it records of them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagan.checkpoint import require_whole_checkpoint
from sagan.commands.attend_options import MOST_IMAGES, Options
from sagan.commands.measured import Source
from sagan.config import load_config
from sagan.data.convert import Unusable, convert
from sagan.data.folder import FolderSource
from sagan.data.prepare import ensure_prepared
from sagan.discriminator import Discriminator
from sagan.errors import UserError
from sagan.evaluation.image_set import from_prepared
from sagan.inspection.health import shows_something
from sagan.inspection.judged import judged_attention
from sagan.inspection.maps import Points, Recording, attention_of
from sagan.modes import load_discriminator, load_generators
from sagan.networks import Generator
from sagan.resolutions import ATTENTION_RESOLUTION
from sagan.sampling import default_labels, generate, latents
from sagan.selections import parse_classes
from sagan.snapshot import load_snapshot


@dataclass(frozen=True, eq=False)
class Subject:
    """Networks, and the inputs of each image: z (B, z_dim), labels (B,) or None, its seed."""

    generator: Generator
    discriminator: Discriminator | None
    z: Tensor
    labels: Tensor | None
    seeds: list[int]
    run: Path | None


def open_subject(source: Source, options: Options, seeds: Sequence[int]) -> Subject:
    """Load what is to be looked at. UserError when it is not there or has no attention."""
    discriminator = None
    if source.kind == "checkpoint":
        checkpoint = source.path
        generator = load_generators(checkpoint)["averaged"]
    else:
        generator = load_snapshot(source.text)
        checkpoint = require_whole_checkpoint(source.path) if options.of_discriminator else None
    if options.of_generator:
        _require_attention(generator, options.source, "generator", generator.resolution)
    if checkpoint is not None and options.of_discriminator:
        discriminator = load_discriminator(checkpoint)
        _require_attention(discriminator, options.source, "discriminator", discriminator.resolution)
    classes = options.classes
    chosen = None if classes is None else parse_classes(classes, generator.class_names, generator.num_classes)
    each_seed = [seed for seed in seeds for _ in chosen or [None]]
    if len(each_seed) > MOST_IMAGES:
        raise UserError(f"{len(each_seed)} images asked for; a figure shows at most {MOST_IMAGES}")
    labels = default_labels(seeds, generator.num_classes) if chosen is None else torch.tensor(chosen).repeat(len(seeds))
    return Subject(generator, discriminator, latents(each_seed, generator.z_dim), labels, each_seed, source.run)


def record_generator(subject: Subject, points: Points, layers: str | None) -> Recording:
    """The maps of the generator while it draws the images."""
    found = attention_of(subject.generator, subject.z, subject.labels, subject.seeds, points, progress=True)
    return _only(found, layers)


def record_discriminator(subject: Subject, points: Points, options: Options) -> dict[str, Recording]:
    """The maps of the discriminator while it judges real and generated images."""
    assert subject.discriminator is not None
    names = subject.generator.class_names
    device = next(subject.generator.parameters()).device
    fakes = torch.cat(list(generate(subject.generator, subject.z, subject.labels, device))).numpy()
    of_fakes = judged_attention(subject.discriminator, fakes, subject.labels, subject.seeds, points, names)
    reals, labels = _real_images(subject, options)
    of_reals = judged_attention(subject.discriminator, reals, labels, range(len(reals)), points, names)
    return {
        "discriminator-generated": _only(of_fakes, options.layers),
        "discriminator-real": _only(of_reals, options.layers),
    }


def _real_images(subject: Subject, options: Options) -> tuple[np.ndarray, Tensor | None]:
    """As many real images as generated ones, uint8 (B, R, R, 3), and their labels (B,) where there are classes."""
    count, generator = len(subject.seeds), subject.generator
    if options.images is not None:
        images, labels = _read_folder(options.images, generator, count)
    else:
        assert subject.run is not None
        data = from_prepared(ensure_prepared(load_config(subject.run / "config.yaml").data, report=lambda line: None))
        some = data.sample(min(count, data.count))
        images, labels = some.read(np.arange(some.count)).numpy(), some.labels
    return images, None if labels is None or not generator.num_classes else torch.from_numpy(labels)


def _read_folder(folder: Path, generator: Generator, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`count` images spread evenly over a folder, at the generator's resolution, and their labels."""
    source = FolderSource(folder)
    places = {name: i for i, name in enumerate(generator.class_names)}
    own = source.class_names()
    if generator.num_classes and not (own and set(own) <= places.keys()):
        raise UserError(
            f"{folder}: the discriminator needs the class of every image; "
            f"give sub-folders named as its classes: {', '.join(generator.class_names)}"
        )
    items = list(source.items())
    images, labels = [], []
    for item in items[:: max(1, len(items) // count)][:count]:
        try:
            pixels, label, _ = convert(item, generator.resolution, "crop")
        except Unusable as error:
            raise UserError(f"{folder / item.name}: {error.reason}") from None
        images.append(pixels)
        labels.append(places[own[label]] if generator.num_classes else 0)
    return np.stack(images), np.array(labels, np.int64)


def _only(recording: Recording, layers: str | None) -> Recording:
    """The recording with the maps that were asked for; UserError for one that is not there."""
    if layers is None:
        return recording
    wanted = [name.strip() for name in layers.split(",")]
    for name in wanted:
        if name not in recording.maps:
            near = difflib.get_close_matches(name, recording.maps, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(recording.maps)}"
            raise UserError(f"--layers {name!r}: no such map; {hint}")
    return replace(recording, maps={name: recording.maps[name] for name in wanted})


def _require_attention(network: nn.Module, source: str, name: str, resolution: int) -> None:
    if not shows_something(network):
        raise UserError(
            f"{source}: this {name} has no attention, so there is nothing to show; "
            f"train one with, for example, --set {name}.attention.{ATTENTION_RESOLUTION[resolution]}=self_attention"
        )

"""What a generator attends to while it draws: the maps of a few query points, for pictures, numbers and files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap, record_attention
from sagan.drawing import drawing_form
from sagan.files import atomic_file
from sagan.inspection.health import module_gammas, module_of, resolutions
from sagan.networks import Generator
from sagan.progress import track
from sagan.sampling import BATCH, generate
from sagan.spectral_norm import hold_state

Maps = dict[str, AttentionMap]
Points = Tensor | Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Recording:
    """B images and, for k query points on each, the map of every attention module. Everything is on the CPU."""

    images: np.ndarray  # (B, H, W, 3) uint8
    seeds: np.ndarray  # (B,) int64
    labels: np.ndarray  # (B,) int64; -1 without classes
    points: Tensor  # (B, k, 2) float64: fractions of height and width
    maps: Maps  # name -> weights (B, heads, k, H', W') float32
    gamma: dict[str, float]  # name -> attention gain, of modules that have one
    resolution: dict[str, tuple[int, int]]  # name -> size of the query map
    class_names: tuple[str, ...] = ()


def attention_of(
    generator: Generator,
    z: Tensor,
    labels: Tensor | None,
    seeds: Sequence[int],
    points: Points,
    progress: bool = False,
) -> Recording:
    """Draw images of z (B, z_dim) and labels (B,), and record the attention of `points`; the network stays as it is.

    `points`: fractions (k, 2) or (B, k, 2), or a function from a batch of images, uint8 (b, H, W, 3), to theirs, such
    as `partial(salient_points, k=5)`. The images are those of `sagan.sampling.generate`, bit for bit. Memory: k rows
    of each map, never all of them. Without attention modules `maps` is empty.
    """
    training = generator.training
    generator.eval()
    try:
        with hold_state(generator):
            batches = list(_record(generator, z, labels, points, progress))
    finally:
        generator.train(training)
    images, chosen, maps = zip(*batches, strict=True)
    return recording_of(
        generator, torch.cat(images).numpy(), seeds, labels, torch.cat(chosen), maps, generator.class_names
    )


def recording_of(
    network: nn.Module,
    images: np.ndarray,
    seeds: Sequence[int],
    labels: Tensor | None,
    points: Tensor,
    batches: Sequence[Maps],
    class_names: tuple[str, ...],
) -> Recording:
    """The maps of `network`, recorded batch by batch, as one recording of all images."""
    gammas, sizes = module_gammas(network), resolutions(network)
    return Recording(
        images=images,
        seeds=np.array(seeds, np.int64),
        labels=np.full(len(images), -1) if labels is None else labels.cpu().numpy(),
        points=points,
        maps={
            name: AttentionMap(found.kind, torch.cat([batch[name].weights for batch in batches]))
            for name, found in batches[0].items()
        },
        gamma={n: gamma for n in batches[0] if (gamma := gammas.get(n, gammas.get(module_of(n)))) is not None},
        resolution={
            name: sizes.get(module_of(name), (found.weights.shape[-2], found.weights.shape[-1]))
            for name, found in batches[0].items()
        },
        class_names=class_names,
    )


def save_npz(path: Path, recording: Recording) -> None:
    """Write a recording for `np.load`, without pickle, whole or not at all. docs/attend.md lists the arrays."""
    count = len(recording.images)
    height, width = recording.images.shape[1:3]
    points, names = recording.points.numpy(), list(recording.maps)
    arrays = {
        "images": recording.images,
        "seeds": recording.seeds,
        "labels": recording.labels,
        "class_names": np.array(recording.class_names, np.str_),
        "points": points,
        "point_pixels": np.floor(points * (height, width)).astype(np.int64),
        "layers": np.array(names, np.str_),
        "kind": np.array([recording.maps[name].kind for name in names], np.str_),
        "gamma": np.array([recording.gamma.get(name, np.nan) for name in names]),
        "resolution": np.array([recording.resolution[name] for name in names], np.int64).reshape(-1, 2),
    }
    arrays |= {f"maps/{name}": found.weights.numpy() for name, found in recording.maps.items()}
    assert all(len(arrays[key]) == count for key in ("seeds", "labels", "points"))
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _record(
    generator: Generator, z: Tensor, labels: Tensor | None, points: Points, progress: bool
) -> Iterator[tuple[Tensor, Tensor, Maps]]:
    """Images (b, H, W, 3), points (b, k, 2) and maps of one batch after the other."""
    device = next(generator.parameters()).device
    generator = drawing_form(generator)
    starts = range(0, len(z), BATCH)
    for start in track(starts, len(starts), "recording attention") if progress else starts:
        rows = slice(start, start + BATCH)
        inputs = z[rows], None if labels is None else labels[rows], device
        if callable(points):
            chosen = points(torch.cat(list(generate(generator, *inputs))).numpy())
        else:
            chosen = points.cpu().double().expand(len(z), -1, -1)[rows]
        yield _record_batch(generator, chosen.expand(len(z[rows]), -1, -1), *inputs)


def _record_batch(
    generator: Generator, points: Tensor, z: Tensor, labels: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor, Maps]:
    """The images of at most BATCH z, their points, and the maps of the very forward that drew them."""
    padded = points.new_zeros(BATCH, *points.shape[1:])  # as `generate` pads z
    padded[: len(points)] = points
    recorded: Maps = {}

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        with record_attention(generator, padded) as maps:
            images = generator(z, labels)
        recorded.update(maps)
        return images

    images = torch.cat(list(generate(draw, z, labels, device)))
    return images, points, {n: AttentionMap(m.kind, m.weights[: len(z)].float().cpu()) for n, m in recorded.items()}

"""Attention maps of a few query points while a network runs, for figures, numbers and files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap, AttentionModule, record_attention
from sagan.layers.spectral_norm import hold_state
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.models.inference import fuse_for_inference
from sagan.sampling.sampler import BATCH, generate
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file
from sagan.utils.progress import track
from sagan.utils.random import numpy_generator

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
    """Generate images of z (B, z_dim) and labels (B,) and record the attention of `points`.

    `points`: fractions (k, 2) or (B, k, 2), or a function from a batch of images, uint8 (b, H, W, 3), to theirs, such
    as `partial(salient_points, k=5)`. The images are those of `sampling.generate`, bit for bit, and the
    generator is not changed. Memory: k rows of each map, never all of them. Without attention modules `maps` is empty.
    """
    with inspected(generator) as fused:
        batches = list(_record(fused, z, labels, points, progress))
    images, maps, chosen = zip(*batches, strict=True)
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
    """One recording of all images from the maps of each batch."""
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
        gamma={n: gamma for n in batches[0] if (gamma := gamma_of(gammas, n)) is not None},
        resolution={
            name: sizes.get(module_of(name), (found.weights.shape[-2], found.weights.shape[-1]))
            for name, found in batches[0].items()
        },
        class_names=class_names,
    )


def save_npz(path: Path, recording: Recording) -> None:
    """Write a recording for `np.load`, without pickle and atomically. docs/attend.md lists the arrays."""
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
) -> Iterator[tuple[Tensor, Maps, Tensor]]:
    """Images (b, H, W, 3), maps and points (b, k, 2) of one batch after the other."""
    device = next(generator.parameters()).device
    starts = range(0, len(z), BATCH)
    for start in track(starts, len(starts), "recording attention") if progress else starts:
        rows = slice(start, start + BATCH)
        inputs = z[rows], None if labels is None else labels[rows], device
        if callable(points):
            chosen = points(torch.cat(list(generate(generator, *inputs))).numpy())
        else:
            chosen = points.cpu().double().expand(len(z), -1, -1)[rows]
        chosen = chosen.expand(len(z[rows]), -1, -1)
        yield *record_batch(generator, chosen, *inputs), chosen


@contextmanager
def inspected(generator: Generator) -> Iterator[Generator]:
    """The generator as `generate` runs it: in eval mode, fused, its state held; afterwards it is as it was."""
    training = generator.training
    generator.eval()
    try:
        with hold_state(generator):
            yield fuse_for_inference(generator)
    finally:
        generator.train(training)


def record_batch(
    generator: Generator, points: Tensor | None, z: Tensor, labels: Tensor | None, device: torch.device
) -> tuple[Tensor, Maps]:
    """The images of at most BATCH z and, from the same forward, the maps of their points (None: of all cells)."""
    padded = None
    if points is not None:
        padded = points.new_zeros(BATCH, *points.shape[1:])  # as `generate` pads z
        padded[: len(points)] = points
    recorded: Maps = {}

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        with record_attention(generator, padded) as maps:
            images = generator(z, labels)
        recorded.update(maps)
        return images

    images = torch.cat(list(generate(draw, z, labels, device)))
    return images, {n: AttentionMap(m.kind, m.weights[: len(z)].float().cpu()) for n, m in recorded.items()}


@torch.no_grad()
def discriminator_attention(
    discriminator: Discriminator,
    images: np.ndarray,
    labels: Tensor | None,
    numbers: Sequence[int],
    points: Tensor | Callable[[np.ndarray], Tensor],
    class_names: tuple[str, ...] = (),
) -> Recording:
    """Record the attention of `points` on images, uint8 (B, R, R, 3), with labels (B,).

    `numbers` (B,): seeds, or indices in the data; `points`: as for `attention_of`. The discriminator is not changed.
    """
    device = next(discriminator.parameters()).device
    chosen = points(images) if callable(points) else points.cpu().double()
    chosen = chosen.expand(len(images), -1, -1)
    parts: list[Maps] = []
    with hold_state(discriminator):
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            x = torch.from_numpy(images[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (b, 3, R, R)
            with record_attention(discriminator, chosen[rows]) as maps:
                discriminator(x, None if labels is None else labels[rows].to(device))
            parts.append({name: AttentionMap(m.kind, m.weights.float().cpu()) for name, m in maps.items()})
    return recording_of(discriminator, images, numbers, labels, chosen, parts, class_names)


FINEST = 64  # larger images are subsampled to every second, third … pixel
COLOR = 0.7  # distance of black and one full channel, in image sides
FLOOR = 0.05  # weight of the least salient pixel; the most salient one weighs 1
STARTS, ROUNDS = 6, 10  # of k-means


def pixel_points(pixels: Tensor, height: int, width: int) -> Tensor:
    """Fractions (…, 2) of the centers of pixels (…, 2), (row, column). UserError for one outside the image."""
    size = torch.tensor([height, width])
    outside = ((pixels < 0) | (pixels >= size)).any(-1)
    if outside.any():
        row, column = pixels[outside][0].tolist()
        raise UserError(f"point {row},{column} lies outside the image of {height} rows and {width} columns")
    return (pixels.double() + 0.5) / size


def grid_points(k: int) -> Tensor:
    """k points (k, 2) spread evenly, row by row; the lower rows hold one more where k does not divide."""
    rows = round(_checked(k) ** 0.5)
    counts = [(k + i) // rows for i in range(rows)]
    points = [((i + 0.5) / rows, (j + 0.5) / n) for i, n in enumerate(counts) for j in range(n)]
    return torch.tensor(points, dtype=torch.float64)


def random_points(k: int, seed: int = 0) -> Tensor:
    """k points (k, 2), uniform, from `seed` alone."""
    return torch.from_numpy(numpy_generator(seed, "attention points").random((_checked(k), 2)))


def salient_points(images: np.ndarray, k: int, seed: int = 0) -> Tensor:
    """Points that are far apart and on salient parts of each image, (B, k, 2), ordered from left to right.

    k-means over the pixels of each uint8 image (B, H, W, 3), by position and color. A pixel weighs more the farther its
    color is from the image's median. The best of a few random starts counts, and of each cluster the pixel nearest its
    center. The result depends on the image, k and seed alone, not on the batch.
    """
    height, width = images.shape[1:3]
    step = -(-max(height, width) // FINEST)
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    pixels = np.stack([rows.ravel(), columns.ravel()], axis=1)  # (P, 2)
    if _checked(k) > len(pixels):
        raise UserError(f"{k} points asked for, an image of {height}x{width} has room for {len(pixels)}")
    places = (pixels + 0.5) / (height, width)  # (P, 2)
    chosen = []
    for image in images:
        colors = image[pixels[:, 0], pixels[:, 1]] / 255  # (P, 3)
        contrast = np.square(colors - np.median(colors, axis=0)).sum(axis=1)
        weights = FLOOR + (1 - FLOOR) * contrast / max(contrast.max(), 1e-9)
        features = np.concatenate([places, COLOR * colors], axis=1)  # (P, 5)
        starts = numpy_generator(seed, "salient points").random((STARTS, k))
        clusterings = [_k_means(features, weights, draws) for draws in starts]
        _, centers = min(clusterings, key=lambda clustering: clustering[0])
        found = pixels[_nearest_rows(features, centers)]
        chosen.append(found[np.lexsort((found[:, 0], found[:, 1]))])
    return pixel_points(torch.from_numpy(np.array(chosen)), height, width)


def _k_means(features: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted k-means (Lloyd) over rows (P, F): its cost, and the centers (k, F)."""
    centers = _seeded_centers(features, weights, draws)
    for _ in range(ROUNDS):
        nearest = _squared_distances(features, centers).argmin(axis=1)
        share = weights[:, None] * (nearest[:, None] == np.arange(len(centers)))  # (P, k)
        mass = share.sum(axis=0)[:, None]
        centers = np.where(mass > 0, share.T @ features / np.maximum(mass, 1e-9), centers)  # an empty one stays
    return float((weights * _squared_distances(features, centers).min(axis=1)).sum()), centers


def _nearest_rows(features: np.ndarray, centers: np.ndarray) -> list[int]:
    """The row nearest each center, all different."""
    distances = _squared_distances(features, centers)  # (P, k)
    rows: list[int] = []
    for j in range(len(centers)):
        distances[rows, j] = np.inf
        rows.append(int(distances[:, j].argmin()))
    return rows


def _seeded_centers(features: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """k-means++ (Arthur & Vassilvitskii 2007): each center drawn by weight × squared distance to the ones before."""
    chances, centers = weights, np.empty((0, features.shape[1]))
    for draw in draws:
        total = chances.cumsum()
        row = min(int(np.searchsorted(total, draw * total[-1], side="right")), len(features) - 1)
        centers = np.vstack([centers, features[row]])
        chances = weights * _squared_distances(features, centers).min(axis=1)
    return centers


def _squared_distances(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(P, F), (k, F) -> (P, k)."""
    squares = (features**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)
    return np.maximum(squares - 2 * features @ centers.T, 0)


def _checked(k: int) -> int:
    if k < 1:
        raise UserError(f"{k} query points asked for, at least 1 is needed")
    return k


def module_gammas(network: nn.Module) -> dict[str, float]:
    """The attention gain of every attention module that has one; of a module with several, by the name of their map.

    "attention.16x16" -> gamma; with gamma_position and gamma_channel "attention.16x16/position" and ".../channel".
    """
    gammas: dict[str, float] = {}
    for name, module in attention_modules(network).items():
        gains = module.gains()
        for gain, value in gains.items():
            which = f"{name}/{gain.removeprefix('gamma_')}" if len(gains) > 1 else name
            gammas[which] = value.detach().float().mean().item()
    return gammas


def resolutions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Size (H, W) of the query map of every attention module."""
    return {name: module.resolution for name, module in attention_modules(network).items()}


def gamma_of(gammas: dict[str, float], name: str) -> float | None:
    """The attention gain of a map, from those of `module_gammas`."""
    return gammas.get(name, gammas.get(module_of(name)))


def module_of(name: str) -> str:
    """The module of a map: names are "module" or "module/tap"."""
    return name.partition("/")[0]


def attention_modules(network: nn.Module) -> dict[str, AttentionModule]:
    """The attention modules of a network, by the names of their maps."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AttentionModule)}

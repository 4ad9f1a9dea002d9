"""Record the attention maps of a few query points, for figures, statistics and files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap, attention_modules, record_attention
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
    """B images and the maps of k query points per image, for every attention module. All tensors are on the CPU."""

    images: np.ndarray  # (B, H, W, 3) uint8
    seeds: np.ndarray  # (B,) int64
    labels: np.ndarray  # (B,) int64; -1 without classes
    points: Tensor  # (B, k, 2) float64: fractions of height and width
    maps: Maps  # name -> weights (B, heads, k, H', W') float32
    gamma: dict[str, float]  # name -> attention gain, if the module has one
    resolution: dict[str, tuple[int, int]]  # name -> size of the query map
    class_names: tuple[str, ...] = ()

    def class_name(self, image: int) -> str:
        """Name of an image's class; empty without classes."""
        label = int(self.labels[image])
        return "" if label < 0 else self.class_names[label] if self.class_names else f"class {label}"


def attention_of(
    generator: Generator, z: Tensor, labels: Tensor | None, seeds: Sequence[int], points: Points, progress: bool = False
) -> Recording:
    """Generate images of z (B, z_dim) and labels (B,) and record the attention of `points`.

    `points`: fractions (k, 2) or (B, k, 2), or a function from images, uint8 (B, H, W, 3), to them, such as
    `partial(salient_points, k=5)`. The images are bit-for-bit those of `sampling.generate`, and the generator is not
    changed. Memory is proportional to k, not to the number of cells. Without attention modules, `maps` is empty.
    """
    device = next(generator.parameters()).device
    images, batches, starts = [], [], range(0, len(z), BATCH)
    with inspected(generator) as fused:
        if callable(points):
            points = points(torch.cat(list(generate(fused, z, labels, device))).numpy())
        points = points.cpu().double().expand(len(z), -1, -1)
        for start in track(starts, len(starts), "recording attention") if progress else starts:
            rows = slice(start, start + BATCH)
            found = record_batch(fused, points[rows], z[rows], None if labels is None else labels[rows], device)
            images.append(found[0])
            batches.append(found[1])
    return _recording(generator, torch.cat(images).numpy(), seeds, labels, points, batches, generator.class_names)


@contextmanager
def inspected(generator: Generator) -> Iterator[Generator]:
    """A fused copy of the generator in eval mode, its state held. The generator is restored on exit."""
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
    """Images (b, H, W, 3) of b ≤ BATCH z and, from the same forward, the maps of their points (None: of all cells)."""
    if points is not None:  # padded as `generate` pads z
        points = torch.cat([points, points.new_zeros(BATCH - len(points), *points.shape[1:])])
    recorded: Maps = {}

    def forward(z: Tensor, labels: Tensor | None) -> Tensor:
        with record_attention(generator, points) as maps:
            images = generator(z, labels)
        recorded.update(maps)
        return images

    images = torch.cat(list(generate(forward, z, labels, device)))
    return images, {n: AttentionMap(m.kind, m.weights[: len(z)].float().cpu()) for n, m in recorded.items()}


@torch.no_grad()
def discriminator_attention(
    discriminator: Discriminator,
    images: np.ndarray,
    labels: Tensor | None,
    numbers: Sequence[int],
    points: Points,
    class_names: tuple[str, ...] = (),
) -> Recording:
    """Record the attention of `points` on images, uint8 (B, R, R, 3), with labels (B,).

    `numbers` (B,): seeds, or indices in the data; `points`: as for `attention_of`. The discriminator is not changed.
    """
    device = next(discriminator.parameters()).device
    chosen = points(images) if callable(points) else points.cpu().double()
    chosen = chosen.expand(len(images), -1, -1)
    batches: list[Maps] = []
    with hold_state(discriminator):
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            x = as_input(images[rows], discriminator).to(device)
            with record_attention(discriminator, chosen[rows]) as maps:
                discriminator(x, None if labels is None else labels[rows].to(device))
            batches.append({name: AttentionMap(m.kind, m.weights.float().cpu()) for name, m in maps.items()})
    return _recording(discriminator, images, numbers, labels, chosen, batches, class_names)


def as_input(images: np.ndarray, discriminator: Discriminator) -> Tensor:
    """Images uint8 (B, R, R, 3) as the discriminator takes them: (B, C, R, R) in [-1, 1]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x[:, : discriminator.image_channels]


def _recording(
    network: nn.Module,
    images: np.ndarray,
    seeds: Sequence[int],
    labels: Tensor | None,
    points: Tensor,
    batches: Sequence[Maps],
    class_names: tuple[str, ...],
) -> Recording:
    gammas, modules = module_gammas(network), attention_modules(network)
    maps = {n: AttentionMap(m.kind, torch.cat([batch[n].weights for batch in batches])) for n, m in batches[0].items()}
    return Recording(
        images=images,
        seeds=np.array(seeds, np.int64),
        labels=np.full(len(images), -1) if labels is None else labels.cpu().numpy(),
        points=points,
        maps=maps,
        gamma={name: gamma for name in maps if (gamma := gamma_of(gammas, name)) is not None},
        resolution={
            name: getattr(modules.get(module_of(name)), "resolution", (m.weights.shape[-2], m.weights.shape[-1]))
            for name, m in maps.items()
        },
        class_names=class_names,
    )


def save_npz(path: Path, recording: Recording) -> None:
    """Write a recording for `np.load`, without pickle and atomically. docs/attend.md lists the arrays."""
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
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def pixel_points(pixels: Tensor, height: int, width: int) -> Tensor:
    """Fractions (…, 2) of the centers of pixels (…, 2), (row, column). UserError for a pixel outside the image."""
    size = torch.tensor([height, width])
    outside = ((pixels < 0) | (pixels >= size)).any(-1)
    if outside.any():
        row, column = pixels[outside][0].tolist()
        raise UserError(f"point {row},{column} lies outside the image of {height} rows and {width} columns")
    return (pixels.double() + 0.5) / size


def grid_points(k: int) -> Tensor:
    """k evenly spaced points (k, 2), row by row. If k does not divide evenly, the lower rows have one point more."""
    rows = round(k**0.5)
    counts = [(k + i) // rows for i in range(rows)]
    points = [((i + 0.5) / rows, (j + 0.5) / n) for i, n in enumerate(counts) for j in range(n)]
    return torch.tensor(points, dtype=torch.float64)


def random_points(k: int, seed: int = 0) -> Tensor:
    """k uniformly random points (k, 2)."""
    return torch.from_numpy(numpy_generator(seed, "attention points").random((k, 2)))


MAX_SIDE = 64  # larger images are subsampled
COLOR_SCALE = 0.7  # distance between black and one full channel, in image sides
MIN_WEIGHT = 0.05  # of the least salient pixel; the most salient one weighs 1
STARTS, ITERATIONS = 6, 10  # of k-means


def salient_points(images: np.ndarray, k: int, seed: int = 0) -> Tensor:
    """Points on salient parts of each image, far apart from each other: (B, k, 2), ordered from left to right.

    k-means over the pixels of each uint8 image (B, H, W, 3), by position and color. A pixel's weight grows with the
    distance of its color from the image's median color. The best of several random starts is used, and of each cluster
    the pixel nearest its center. Each image's points are independent of the batch.
    """
    height, width = images.shape[1:3]
    step = -(-max(height, width) // MAX_SIDE)
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    pixels = np.stack([rows.ravel(), columns.ravel()], axis=1)  # (P, 2)
    positions = (pixels + 0.5) / (height, width)  # (P, 2)
    points = []
    for image in images:
        colors = image[pixels[:, 0], pixels[:, 1]] / 255  # (P, 3)
        contrast = np.square(colors - np.median(colors, axis=0)).sum(axis=1)
        weights = MIN_WEIGHT + (1 - MIN_WEIGHT) * contrast / max(contrast.max(), 1e-9)
        features = np.concatenate([positions, COLOR_SCALE * colors], axis=1)  # (P, 5)
        starts = numpy_generator(seed, "salient points").random((STARTS, k))
        _, centers = min((_k_means(features, weights, draws) for draws in starts), key=lambda found: found[0])
        distances = _squared_distances(features, centers)  # (P, k)
        nearest: list[int] = []
        for j in range(k):
            distances[nearest, j] = np.inf  # a pixel is chosen once
            nearest.append(int(distances[:, j].argmin()))
        chosen = pixels[nearest]
        points.append(chosen[np.lexsort((chosen[:, 0], chosen[:, 1]))])
    return pixel_points(torch.from_numpy(np.array(points)), height, width)


def _k_means(features: np.ndarray, weights: np.ndarray, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted k-means over rows (P, F) -> cost, centers (k, F). Lloyd's algorithm, seeded by k-means++ from `draws`.

    k-means++ (Arthur & Vassilvitskii 2007) draws each center by weight × squared distance to the previous centers.
    """
    chances, centers = weights, np.empty((0, features.shape[1]))
    for draw in draws:
        total = chances.cumsum()
        row = min(int(np.searchsorted(total, draw * total[-1], side="right")), len(features) - 1)
        centers = np.vstack([centers, features[row]])
        chances = weights * _squared_distances(features, centers).min(axis=1)
    for _ in range(ITERATIONS):
        nearest = _squared_distances(features, centers).argmin(axis=1)
        share = weights[:, None] * (nearest[:, None] == np.arange(len(centers)))  # (P, k)
        mass = share.sum(axis=0)[:, None]
        centers = np.where(mass > 0, share.T @ features / np.maximum(mass, 1e-9), centers)  # keep empty clusters
    return float((weights * _squared_distances(features, centers).min(axis=1)).sum()), centers


def _squared_distances(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(P, F), (k, F) -> (P, k)."""
    squares = (features**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)
    return np.maximum(squares - 2 * features @ centers.T, 0)


def module_gammas(network: nn.Module) -> dict[str, float]:
    """Attention gains by module name, or by map name if a module has several.

    "attention.16x16" -> gamma; with gamma_position and gamma_channel "attention.16x16/position" and ".../channel".
    """
    gammas: dict[str, float] = {}
    for name, module in attention_modules(network).items():
        gains = module.gains()
        for gain, value in gains.items():
            key = f"{name}/{gain.removeprefix('gamma_')}" if len(gains) > 1 else name
            gammas[key] = value.detach().float().mean().item()
    return gammas


def gamma_of(gammas: dict[str, float], name: str) -> float | None:
    """The attention gain of a map, from those of `module_gammas`."""
    return gammas.get(name, gammas.get(module_of(name)))


def module_of(name: str) -> str:
    """The module of a map. Map names are "module" or "module/map"."""
    return name.partition("/")[0]

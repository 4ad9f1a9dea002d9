"""Whether attention is used: the entropy and reach of its maps, and the gain with which it enters the network.

For one softmax row p over M keys of a query cell q, on an H×W query map; lengths in fractions of the map's sides:

- entropy: -Σ p log p / log M. Uniform attention: 1.
- distance: Σ p |c - q|, c the center of the key.
- far_mass: the share of p outside the 7×7 query cells around q (cut off at the border). A pooled key covers s×s query
  cells, s = H // H', and its weight counts as spread evenly over them; its center is theirs.
- variation: total variation distance Σ|p - p'|/2 between the rows of two points of one image. 0: every point sees the
  same map, 1: no two share a key. Uniform attention: 0. Absent for a single point.

Each is averaged over images, heads and points, and reported with its value for uniform attention at the same points.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap
from sagan.attention.base import Observable, cells_of
from sagan.data.shapes import SHAPES, pixel_centers
from sagan.inspection.record import (
    Recording,
    attention_modules,
    attention_of,
    gamma_of,
    module_gammas,
    module_of,
    resolutions,
)
from sagan.layers.spectral_norm import refresh_spectral_norm, spectral_normalize
from sagan.models.blocks import initialize
from sagan.models.generator import Generator, remove_spectral_norm
from sagan.sampling.sampler import generate
from sagan.utils.images import image_grid, name_rows
from sagan.utils.random import key

REACH = 3  # cells to each side that are local
UNUSED, WEAK = 1e-6, 0.01  # gains below these are called unused, weak
EVEN = 0.99  # maps of at least this entropy are called nearly uniform
SAME = 0.05  # below this variation all points are said to have the same map


@dataclass(frozen=True)
class Keys:
    """Positions of the keys of a map relative to k query cells: fields (B or 1, 1, k, H', W')."""

    distance: Tensor  # from the query cell's center, in fractions of the map's sides
    far: Tensor  # share of the key's cells that is not local

    @classmethod
    def seen_from(cls, points: Tensor, size: tuple[int, int], keys: tuple[int, int]) -> "Keys":
        """From the cells that hold fractional `points` (k, 2) or (B, k, 2) on a query map of `size`."""
        cells = cells_of(points, *size).reshape(-1, 1, points.shape[-2], 2)  # (B or 1, 1, k, 2)
        offsets, local = [], []
        for axis in (0, 1):
            stride = size[axis] // keys[axis]
            start = stride * torch.arange(keys[axis])
            cell = cells[..., axis, None]  # (…, k, 1)
            offsets.append((start + (stride - 1) / 2 - cell).double() / size[axis])  # (…, k, H' or W')
            upper, lower = torch.minimum(start + stride, cell + REACH + 1), torch.maximum(start, cell - REACH)
            local.append((upper - lower).clamp(min=0).double() / stride)
        return cls(
            distance=torch.hypot(offsets[0][..., :, None], offsets[1][..., None, :]),
            far=1 - local[0][..., :, None] * local[1][..., None, :],
        )


def entropy(weights: Tensor) -> Tensor:
    """Softmax rows (…, H', W') -> (…): in [0, 1], 1 for a uniform row."""
    rows = weights.double().flatten(-2)
    return torch.special.entr(rows).sum(-1) / math.log(max(rows.shape[-1], 2))


def variation(weights: Tensor) -> Tensor:
    """Softmax rows (B, heads, k, H', W') -> (B, heads): mean over the pairs of two points."""
    rows, k = weights.double().flatten(-2), weights.shape[2]
    return torch.cdist(rows, rows, p=1).sum((-2, -1)) / 2 / (k * (k - 1))


def map_health(found: AttentionMap, points: Tensor, size: tuple[int, int]) -> dict[str, float]:
    """The numbers above for a map of softmax rows, recorded at fractional `points` on a query map of `size`."""
    weights = found.weights.cpu().double()  # (B, heads, k, H', W')
    keys = Keys.seen_from(points, size, (weights.shape[-2], weights.shape[-1]))
    pairs = weights.shape[2] > 1
    return {
        "entropy": entropy(weights).mean().item(),
        "uniform_entropy": 1.0,
        "distance": (weights * keys.distance).sum((-2, -1)).mean().item(),
        "uniform_distance": keys.distance.mean().item(),
        "far_mass": (weights * keys.far).sum((-2, -1)).mean().item(),
        "uniform_far_mass": keys.far.mean().item(),
        **({"variation": variation(weights).mean().item(), "uniform_variation": 0.0} if pairs else {}),
    }


def attention_health(network: nn.Module, maps: dict[str, AttentionMap], points: Tensor) -> dict[str, dict[str, float]]:
    """Numbers of every map that `record_attention(network, points)` gave: name -> gamma (where there is one) and,
    for softmax rows, those of `map_health`."""
    gammas = module_gammas(network)
    health: dict[str, dict[str, float]] = {}
    for name, found in maps.items():
        module = module_of(name)
        gamma = gamma_of(gammas, name)
        health[name] = {} if gamma is None else {"gamma": gamma}
        if found.kind == "softmax row":
            health[name] |= map_health(found, points, resolutions(network)[module])
    return health


def has_maps(network: nn.Module) -> bool:
    """Whether any module of a network has maps to be recorded."""
    return any(module.map_kinds for module in network.modules() if isinstance(module, Observable))


def describe(health: dict[str, dict[str, float]]) -> str:
    """One sentence for each map."""
    return "\n".join(_sentence(name, numbers) for name, numbers in health.items())


def _sentence(name: str, numbers: dict[str, float]) -> str:
    """Such as "attention at 16x16 is used: gamma 0.41, 63 % of the mass is far (uniform: 78 %)"."""
    subject = f"attention at {name.removeprefix('attention.')}"
    gamma = numbers.get("gamma")
    if gamma is not None and abs(gamma) < UNUSED:
        return f"{subject} is unused: gamma is still 0"
    facts = [] if gamma is None else [f"gamma {gamma:.2g}"]
    if "far_mass" in numbers:
        facts.append(f"{numbers['far_mass']:.0%} of the mass is far".replace("%", " %"))
        facts[-1] += f" (uniform: {numbers['uniform_far_mass']:.0%})".replace("%", " %")
        if numbers["entropy"] >= EVEN:
            facts.append("nearly uniform maps")
        elif numbers.get("variation", 1.0) < SAME:
            facts.append("nearly the same map for every point")
    verdict = "is active" if gamma is None else "is weak" if abs(gamma) < WEAK else "is used"
    return f"{subject} {verdict}: {', '.join(facts)}" if facts else f"{subject} {verdict}"


FINE = 256  # pixels on a side of the raster from which a shape's area is computed


@dataclass(frozen=True)
class PartnerMass:
    """Means over heads and over the points that lie on one of two objects.

    Attention that is the same for every point also lies far above chance when it lies on an object, but equally on
    `own`: only `mass` above `own` says that points look for the other object.
    """

    mass: float  # share of a point's attention that falls on the other object
    own: float  # … on the object that the point lies on
    chance: float  # the other object's share of the area: what uniform attention puts there
    points: int


def partner_mass(recording: Recording, masks: np.ndarray) -> dict[str, PartnerMass]:
    """For every map of softmax rows; empty where no query point lies on an object.

    `masks` (B, 2, R, R) bool: the pixels of both objects of each image, none where there are not two. The weight of a
    key counts as spread evenly over its pixels.
    """
    resolution = masks.shape[-1]
    row, column = cells_of(recording.points, resolution, resolution).numpy().transpose(2, 0, 1)  # (B, k)
    image = np.arange(len(masks))[:, None]
    on = masks[image, :, row, column]  # (B, k, 2)
    image, point, own = np.nonzero(on)
    if not len(image):
        return {}
    measured = {}
    for name, found in recording.maps.items():
        if found.kind == "softmax row":
            weights = found.weights.double().numpy()[image, :, point]  # (Q, heads, H', W')
            covers = [_cover(masks[image, side], weights.shape[2:])[:, None] for side in (1 - own, own)]
            mass, own_mass = (float((weights * cover).sum((2, 3)).mean()) for cover in covers)
            measured[name] = PartnerMass(mass, own_mass, float(covers[0].mean()), len(image))
    return measured


def object_mask(shape: int, center: np.ndarray, area: float, resolution: int) -> np.ndarray:
    """The pixels (R, R) bool of an object of `shapes`; centroid (x, y) and area are fractions of the image."""
    distance = list(SHAPES.values())[shape]
    fine = 2.5 * (pixel_centers(FINE) - 0.5)  # a shape of radius 1 fits in
    unit_area = (distance(fine[None, :], fine[:, None], np.ones(1)) <= 0).mean() * 2.5**2
    x, y = pixel_centers(resolution) - center[0], pixel_centers(resolution) - center[1]
    return distance(x[None, :], y[:, None], np.sqrt([area / unit_area])) <= 0


def _cover(masks: np.ndarray, keys: tuple[int, ...]) -> np.ndarray:
    """Share of each key's pixels that a mask covers: (Q, R, R) -> (Q, H', W')."""
    height, width = (n // m for n, m in zip(masks.shape[1:], keys, strict=True))
    return masks.reshape(len(masks), keys[0], height, keys[1], width).mean((2, 4))


AMPLIFIED = 4  # times: differences of a few gray levels are invisible


@dataclass(frozen=True, eq=False)
class Ablation:
    """Images uint8 (B, H, W, 3) of the same z and labels, with every attention module and with all their gains at 0."""

    with_attention: np.ndarray
    without: np.ndarray

    @property
    def change(self) -> float:
        """Mean absolute difference, in gray levels (of 255)."""
        return float(np.abs(self.with_attention.astype(int) - self.without).mean())

    def picture(self) -> np.ndarray:
        """Rows: with attention, without, and the difference, amplified around gray."""
        difference = AMPLIFIED * (self.with_attention.astype(int) - self.without) + 128
        rows = [self.with_attention, self.without, difference.clip(0, 255).astype(np.uint8)]
        scale = max(1, 128 // self.without.shape[1])
        picture = image_grid(np.concatenate(rows), len(self.without), scale=scale)
        return name_rows(picture, ["with attention", "without", f"difference x{AMPLIFIED}"])


def ablate(generator: Generator, z: Tensor, labels: Tensor | None) -> Ablation:
    """Generate images of z (B, z_dim) and labels (B,) with and without attention; the network is not changed.

    Only modules with a gain can be switched off; the others stay active.
    """
    device = next(generator.parameters()).device
    with_attention = torch.cat(list(generate(generator, z, labels, device))).numpy()
    with attention_off(generator):
        without = torch.cat(list(generate(generator, z, labels, device))).numpy()
    return Ablation(with_attention, without)


@contextmanager
def attention_off(network: nn.Module, names: Sequence[str] | None = None) -> Iterator[None]:
    """Inside, the gains of the attention modules (of those with these `names`) are 0, so each returns its input."""
    modules = {name: m for name, m in attention_modules(network).items() if names is None or name in names}
    gains = [gain for module in modules.values() for gain in module.gains().values()]
    saved = [(gain, gain.detach().clone()) for gain in gains]
    with torch.no_grad():
        for gain, _ in saved:
            gain.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for gain, value in saved:
                gain.copy_(value)


def untrained(generator: Generator) -> Generator:
    """A generator of the same settings with random weights, in eval mode, whose maps show the architecture alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(0, "untrained"))
        random = Generator(generator.settings, generator.resolution, generator.num_classes, generator.class_names)
        initialize(random, generator.settings.init)
        if generator.settings.spectral_norm:
            spectral_normalize(random, generator.settings.spectral_norm_eps)
    refresh_spectral_norm(random)
    random.memory_format = generator.memory_format
    return remove_spectral_norm(random).to(next(generator.parameters()).device)


def agreement_with_untrained(
    generator: Generator, recording: Recording, z: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """For each map of softmax rows, 1 - Σ|p - q| / 2 with q the untrained generator's row of the point: 1 is equal.

    A high value means that a map shows the architecture and the position of the point, not what was learned.
    """
    other = attention_of(untrained(generator), z, labels, recording.seeds.tolist(), recording.points)
    return {
        name: 1 - _total_variation(found.weights, other.maps[name].weights)
        for name, found in recording.maps.items()
        if found.kind == "softmax row"
    }


def _total_variation(p: Tensor, q: Tensor) -> float:
    return (p.double() - q.double()).abs().sum((-2, -1)).mean().item() / 2

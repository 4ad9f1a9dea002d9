"""Statistics of attention maps: is attention used, how far does it reach, and does it change the images?

For a softmax row p over M keys of a query cell q, on an H×W query map. Lengths are fractions of the map's sides.

- entropy: -Σ p log p / log M. 1 for uniform attention.
- distance: Σ p |c - q|, where c is the center of the key.
- far_mass: mass outside the 7×7 query cells around q (clipped at the border). A pooled key covers s×s query cells,
  s = H // H'; its weight is spread evenly over them, and its center is theirs.
- variation: total variation distance Σ|p - p'|/2 between the rows of two points of an image. 0: every point has the
  same map; 1: no two points share a key. 0 for uniform attention. Absent for a single point.

Values are means over images, heads and points, and are reported next to those of uniform attention at the same points.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap
from sagan.attention.base import Observable, cells_of
from sagan.data.shapes import SHAPES, Variant, pixel_centers
from sagan.evaluation.coherence import Objects
from sagan.inspection.record import Recording, attention_modules, attention_of, gamma_of, module_gammas, module_of
from sagan.layers.spectral_norm import refresh_spectral_norm, spectral_normalize
from sagan.models.blocks import initialize
from sagan.models.generator import Generator, remove_spectral_norm
from sagan.sampling.sampler import generate
from sagan.utils.images import image_grid, name_rows
from sagan.utils.random import key

REACH = 3  # cells to each side that are local
UNUSED, WEAK = 1e-6, 0.01  # gains below these are reported as unused, weak
EVEN = 0.99  # maps of at least this entropy are reported as nearly uniform
SAME = 0.05  # below this variation, maps are reported as nearly the same for every point


def entropy(weights: Tensor) -> Tensor:
    """Softmax rows (…, H', W') -> (…): in [0, 1], 1 for a uniform row."""
    rows = weights.double().flatten(-2)
    return torch.special.entr(rows).sum(-1) / math.log(max(rows.shape[-1], 2))


def variation(weights: Tensor) -> Tensor:
    """Softmax rows (B, heads, k, H', W') -> (B, heads): mean over all pairs of points."""
    rows, k = weights.double().flatten(-2), weights.shape[2]
    return torch.cdist(rows, rows, p=1).sum((-2, -1)) / 2 / (k * (k - 1))


def map_health(found: AttentionMap, points: Tensor, size: tuple[int, int]) -> dict[str, float]:
    """The statistics above for softmax rows recorded at `points` (k, 2) or (B, k, 2) on a query map of `size`."""
    weights = found.weights.cpu().double()  # (B, heads, k, H', W')
    distance, far = _keys_from_points(points, size, (weights.shape[-2], weights.shape[-1]))
    return {
        "entropy": entropy(weights).mean().item(),
        "uniform_entropy": 1.0,
        "distance": (weights * distance).sum((-2, -1)).mean().item(),
        "uniform_distance": distance.mean().item(),
        "far_mass": (weights * far).sum((-2, -1)).mean().item(),
        "uniform_far_mass": far.mean().item(),
        **({"variation": variation(weights).mean().item(), "uniform_variation": 0.0} if weights.shape[2] > 1 else {}),
    }


def _keys_from_points(points: Tensor, size: tuple[int, int], keys: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Distance of each key from each point's cell, and the share of the key that is far: (B or 1, 1, k, H', W')."""
    cells = cells_of(points, *size).reshape(-1, 1, points.shape[-2], 2)  # (B or 1, 1, k, 2)
    offsets, local = [], []
    for axis in (0, 1):
        stride = size[axis] // keys[axis]
        start = stride * torch.arange(keys[axis])
        cell = cells[..., axis, None]  # (…, k, 1)
        offsets.append((start + (stride - 1) / 2 - cell).double() / size[axis])  # (…, k, H' or W')
        upper, lower = torch.minimum(start + stride, cell + REACH + 1), torch.maximum(start, cell - REACH)
        local.append((upper - lower).clamp(min=0).double() / stride)
    distance = torch.hypot(offsets[0][..., :, None], offsets[1][..., None, :])
    return distance, 1 - local[0][..., :, None] * local[1][..., None, :]


def attention_health(network: nn.Module, maps: dict[str, AttentionMap], points: Tensor) -> dict[str, dict[str, float]]:
    """Statistics of the maps from `record_attention(network, points)`, by name: gamma, if the module has one, and
    those of `map_health` for softmax rows."""
    gammas, modules = module_gammas(network), attention_modules(network)
    health: dict[str, dict[str, float]] = {}
    for name, found in maps.items():
        gamma = gamma_of(gammas, name)
        health[name] = {} if gamma is None else {"gamma": gamma}
        if found.kind == "softmax row":
            health[name] |= map_health(found, points, modules[module_of(name)].resolution)
    return health


def has_maps(network: nn.Module) -> bool:
    """Whether a network has attention maps to record."""
    return any(module.map_kinds for module in network.modules() if isinstance(module, Observable))


def describe(name: str, numbers: dict[str, float]) -> str:
    """One sentence, such as "attention at 16x16 is used: gamma 0.41, 63 % of the mass is far (uniform: 78 %)"."""
    subject = f"attention at {name.removeprefix('attention.')}"
    gamma = numbers.get("gamma")
    if gamma is not None and abs(gamma) < UNUSED:
        return f"{subject} is unused: gamma is still 0"
    facts = [] if gamma is None else [f"gamma {gamma:.2g}"]
    if "far_mass" in numbers:
        far, uniform = 100 * numbers["far_mass"], 100 * numbers["uniform_far_mass"]
        facts.append(f"{far:.0f} % of the mass is far (uniform: {uniform:.0f} %)")
        if numbers["entropy"] >= EVEN:
            facts.append("nearly uniform maps")
        elif numbers.get("variation", 1.0) < SAME:
            facts.append("nearly the same map for every point")
    verdict = "is active" if gamma is None else "is weak" if abs(gamma) < WEAK else "is used"
    return f"{subject} {verdict}: {', '.join(facts)}" if facts else f"{subject} {verdict}"


def partner_mass(recording: Recording, masks: np.ndarray, variant: Variant) -> dict[str, dict[str, float]]:
    """Attention of points on an object to its partner, for every map of softmax rows.

    `masks` (B, objects, R, R) bool: the pixels of the objects of each image, empty if they are not clear. The weight of
    a key is spread evenly over its pixels. Means over heads and over the points on an object; empty without any:

    - mass: share of the attention that falls on the partner
    - own: … on the object of the point itself. A map that is the same for every point also has a `mass` far above
      chance if it lies on an object; only `mass` above `own` means that points attend to their partner.
    - others, chance_others: with two pairs, … on the other pair, and that pair's share of the area
    - chance: the partner's share of the area, that is, the mass of uniform attention
    - points: number of points
    - ratio_to_chance: mass / chance
    """
    resolution = masks.shape[-1]
    row, column = cells_of(recording.points, resolution, resolution).numpy().transpose(2, 0, 1)  # (B, k)
    image = np.arange(len(masks))[:, None]
    image, point, own = np.nonzero(masks[image, :, row, column])  # (Q,) each, of (B, k, objects)
    if not len(image):
        return {}
    partner, pair = np.array(variant.partners), np.array(variant.pair_of)
    wanted = {
        "mass": masks[image, partner[own]],
        "own": masks[image, own],
        "others": (masks[image] & (pair[own][:, None] != pair)[..., None, None]).any(1),
    }  # (Q, R, R) each
    measured = {}
    for name, found in recording.maps.items():
        if found.kind == "softmax row":
            weights = found.weights.double().numpy()[image, :, point]  # (Q, heads, H', W')
            height, width = weights.shape[2:]
            blocks = (len(image), 1, height, resolution // height, width, resolution // width)
            covers = {key: mask.reshape(blocks).mean((3, 5)) for key, mask in wanted.items()}  # share of a key's pixels
            mass = {key: float((weights * cover).sum((2, 3)).mean()) for key, cover in covers.items()}
            chance = float(covers["mass"].mean())
            if len(variant.pairs) > 1:
                mass["chance_others"] = float(covers["others"].mean())
            else:
                del mass["others"]
            measured[name] = mass | {"chance": chance, "points": len(image), "ratio_to_chance": mass["mass"] / chance}
    return measured


def masks_of(objects: Objects, variant: Variant, resolution: int) -> np.ndarray:
    """The pixels of the clear objects of P images: bool (P, objects, R, R)."""
    places = zip(objects.shape, objects.center, objects.area, strict=True)
    masks = [object_mask(*place, resolution) for place in places]
    return np.array(masks, bool).reshape(-1, variant.objects, resolution, resolution)


def object_mask(shape: int, center: np.ndarray, area: float, resolution: int) -> np.ndarray:
    """The pixels (R, R) bool of an object of `shapes`. Centroid (x, y) and area are fractions of the image."""
    distance = list(SHAPES.values())[shape]
    fine = 2.5 * (pixel_centers(256) - 0.5)  # a raster that a shape of radius 1 fits in
    unit_area = (distance(fine[None, :], fine[:, None], np.ones(1)) <= 0).mean() * 2.5**2
    x, y = pixel_centers(resolution) - center[0], pixel_centers(resolution) - center[1]
    return distance(x[None, :], y[:, None], np.sqrt([area / unit_area])) <= 0


def ablate(generator: Generator, z: Tensor, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B, H, W, 3) of z (B, z_dim) and labels (B,): with attention, and with all attention gains at 0.

    Modules without a gain stay active. The network is not changed.
    """
    device = next(generator.parameters()).device
    gains = [gain for module in attention_modules(generator).values() for gain in module.gains().values()]
    values = [gain.detach().clone() for gain in gains]
    with_attention = torch.cat(list(generate(generator, z, labels, device))).numpy()
    with torch.no_grad():
        try:
            for gain in gains:
                gain.zero_()
            without = torch.cat(list(generate(generator, z, labels, device))).numpy()
        finally:
            for gain, value in zip(gains, values, strict=True):
                gain.copy_(value)
    return with_attention, without


AMPLIFIED = 4  # differences of a few gray levels are invisible


def ablation_figure(with_attention: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Rows: images with attention, without, and their difference, amplified around gray."""
    difference = AMPLIFIED * (with_attention.astype(int) - without) + 128
    rows = [with_attention, without, difference.clip(0, 255).astype(np.uint8)]
    grid = image_grid(np.concatenate(rows), len(without), scale=max(1, 128 // without.shape[1]))
    return name_rows(grid, ["with attention", "without", f"difference x{AMPLIFIED}"])


def untrained(generator: Generator) -> Generator:
    """A generator with the same settings and random weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(0, "untrained"))
        random = generator.like()
        initialize(random, generator.settings.init)
        if generator.settings.spectral_norm:
            spectral_normalize(random, generator.settings.spectral_norm_eps)
    refresh_spectral_norm(random)
    random.memory_format = generator.memory_format
    return remove_spectral_norm(random).to(next(generator.parameters()).device)


def agreement_with_untrained(
    generator: Generator, recording: Recording, z: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """1 - Σ|p - q| / 2 for each map of softmax rows, where q is the same point's row in an untrained generator.

    1 means equal. A high value means that a map reflects the architecture and the point's position, not training.
    """
    other = attention_of(untrained(generator), z, labels, recording.seeds.tolist(), recording.points)
    return {
        name: 1 - (m.weights.double() - other.maps[name].weights.double()).abs().sum((-2, -1)).mean().item() / 2
        for name, m in recording.maps.items()
        if m.kind == "softmax row"
    }

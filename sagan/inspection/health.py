"""Whether attention does anything: how even its maps are, how far they reach, and with what gain it enters the network.

For one softmax row p over M keys of a query cell q, on an H×W query map; lengths in fractions of the map's sides:

- entropy: -Σ p log p / log M. Uniform attention: 1.
- distance: Σ p |c - q|, c the centre of the key.
- far_mass: the share of p outside the 7×7 query cells around q (cut off at the border). A pooled key covers s×s query
  cells, s = H // H', and its weight counts as spread evenly over them; its centre is theirs.
- variation: total variation distance Σ|p - p'|/2 between the rows of two points of one image. 0: every point sees the
  same map, 1: no two share a key. Uniform attention: 0. Absent for a single point.

Each is averaged over images, heads and points; what uniform attention at the same points would have stands beside it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sagan.attention import AttentionMap, AttentionModule
from sagan.attention.base import Observable, cells_of

REACH = 3  # cells to each side that are local
UNUSED, WEAK = 1e-6, 0.01  # gains below these are called unused, weak
EVEN = 0.99  # from this entropy on a map is called nearly uniform
SAME = 0.05  # below this variation the points' maps are called the same


@dataclass(frozen=True)
class Keys:
    """Where the keys of a map lie, seen from k query cells: fields (B or 1, 1, k, H', W')."""

    distance: Tensor  # from the query cell's centre, in fractions of the map's sides
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
        gamma = gammas.get(name, gammas.get(module))
        health[name] = {} if gamma is None else {"gamma": gamma}
        if found.kind == "softmax row":
            health[name] |= map_health(found, points, resolutions(network)[module])
    return health


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


def shows_something(network: nn.Module) -> bool:
    """Whether any module of a network has maps to be recorded."""
    return any(module.taps for module in network.modules() if isinstance(module, Observable))


def module_of(name: str) -> str:
    """The module of a map: names are "module" or "module/tap"."""
    return name.partition("/")[0]


def attention_modules(network: nn.Module) -> dict[str, AttentionModule]:
    """The attention modules of a network, by the names of their maps."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AttentionModule)}


def describe(health: dict[str, dict[str, float]]) -> str:
    """One line of plain words for each map."""
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
    verdict = "is there" if gamma is None else "is weak" if abs(gamma) < WEAK else "is used"
    return f"{subject} {verdict}: {', '.join(facts)}" if facts else f"{subject} {verdict}"

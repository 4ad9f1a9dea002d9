"""What every attention mechanism is: a drop-in on feature maps, which can be looked at without changing its results."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """How to read the maps of a tap, (B, heads, k, H', W').

    `per_query`: one map for each of k query points; otherwise k = 1, the same for every point. `spatial`: H', W' lie on
    the feature map; otherwise H' = 1 and W' counts channels, bases or heads. `sums_to_one` along these dimensions.
    """

    per_query: bool
    spatial: bool
    sums_to_one: tuple[int, ...] = ()


ROW, HEADS = (-2, -1), (1,)
KINDS: dict[str, Kind] = {
    "softmax row": Kind(True, True, ROW),  # non-negative weights of the keys
    "signed weight": Kind(True, True),  # weights of the keys, of either sign, not normalised
    "unnormalised weight": Kind(True, True),  # non-negative weights of the keys, not normalised
    "sampling footprint": Kind(True, True),  # bilinear weights of the input cells; sum to 1 inside the map
    "responsibility": Kind(True, False, ROW),  # of each basis for the query point
    "basis map": Kind(False, True, HEADS),  # where each basis (a head) is responsible
    "gather map": Kind(False, True, ROW),  # where each descriptor (a head) is collected from
    "spatial gate": Kind(False, True),  # a factor in [0, 1] for each cell
    "channel gate": Kind(False, False),  # a factor in [0, 1] for each channel ([0, 2] where a sigmoid is doubled)
    "channel rows": Kind(False, False, (-1,)),  # (B, 1, 1, C, C): what each channel takes from the others
    "kernel choice": Kind(False, False, HEADS),  # share of each kernel (a head) in each channel
    "head gate": Kind(False, False),  # a factor in [0, 1] for each head
    "saliency": Kind(False, True),  # how much each cell matters to the logit, not normalised
    "boxes": Kind(False, False),  # (B, boxes, 1, 1, 4): top, left, bottom, right in fractions of the image
    "sampling grid": Kind(False, True),  # heads: row, column of the input that each cell reads, in cells
}


@dataclass(frozen=True)
class AttentionMap:
    """What query points attend to. `kind` names a row of KINDS, which says how to read the numbers."""

    kind: str
    weights: Tensor  # (B, heads, k, H', W') at the resolution of the keys


@dataclass
class Listener:
    """Collects the maps of one module while `record_attention` is open."""

    points: Tensor | None
    maps: dict[str, AttentionMap] = field(default_factory=dict)


class Observable(nn.Module):
    """A module whose forward can be looked at.

    `taps` documents what there is to see: name -> kind. A module calls `self.tap(name, rows, size)` in its forward,
    where `rows(cells)` computes the maps of query cells from the query and key at hand; nobody listening, that costs
    one `is None`. What is listened to is computed beside the one path, never instead of it, and without gradient.
    """

    taps: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.listener: Listener | None = None  # of the instance from the start: torch.compile guards on what it finds

    def tap(self, name: str, rows: Callable[[Tensor], Tensor], size: torch.Size) -> None:
        """Give a listener the map `name` of a feature map of `size` (…, H, W)."""
        if self.listener is None:
            return
        with torch.no_grad():
            cells = cells_of(self.listener.points, size[-2], size[-1])
            self.listener.maps[name] = AttentionMap(self.taps[name], rows(cells).detach())


class AttentionModule(Observable):
    """Maps (B, C, H, W) to (B, C, H, W).

    `places` are those it may take: after a block, on a block's residual branch before the add, in place of a 3×3
    convolution. `gain`: "scalar" lets it enter with a learnt `gamma`, 0 at first; "none" is the paper's form.
    """

    places: ClassVar[tuple[str, ...]] = ("after", "branch")
    gamma: nn.Parameter | None

    def __init__(self, channels: int, resolution: int | tuple[int, int], gain: str = "scalar"):
        super().__init__()
        require(gain in ("scalar", "none"), f"gain is {gain!r}; known: scalar, none")
        self.channels = channels
        self.resolution = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.gamma = nn.Parameter(torch.zeros(())) if gain == "scalar" else None

    def added(self, x: Tensor, change: Tensor) -> Tensor:
        """What a residual mechanism gives: x + γ · change; without a gain x + change."""
        return x + change if self.gamma is None else x + self.gamma * change

    def blended(self, x: Tensor, replacement: Tensor) -> Tensor:
        """What a gate, a warp or a convolution gives: x + γ · (replacement - x); without a gain the replacement."""
        return replacement if self.gamma is None else x + self.gamma * (replacement - x)

    def reset_parameters(self) -> None:
        """Give parameters the values that the paper starts from, after a network has initialised all of its layers."""

    def gains(self) -> dict[str, nn.Parameter]:
        """Its own parameters gamma…: with all of them at 0 the module passes its input on."""
        own = self.named_parameters(recurse=False)
        return {name: parameter for name, parameter in own if name.startswith("gamma")}

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of one forward of one image on a map of this size: convolutions and matrix products only, as
        torch's FLOP counter counts them (half its number); widths that are padded for a fused kernel count padded."""
        raise NotImplementedError

    def pairs(self, height: int, width: int) -> int:
        """Weights of query-key pairs of one image and all heads; held only where no fused kernel runs. 0: none."""
        return 0

    def attention_rows(self, x: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Maps of the cells `points` (k, 2) or (B, k, 2), (row, column) in x (B, C, H, W): tap -> (B, h, k, H', W').

        Never holds more than k rows. Weights under spectral normalisation are read as they stand
        (call `.eval()` or `hold_state` first, or the vectors move as in any forward).
        """
        raise NotImplementedError


@contextmanager
def record_attention(network: nn.Module, points: Tensor | None = None) -> Iterator[dict[str, AttentionMap]]:
    """Record the attention maps of every forward of `network` inside the block; the last forward is kept.

    `points` (k, 2) or (B, k, 2): fractions in [0, 1) of height and width, so that one choice serves every resolution
    (the centre of image pixel (r, c) is ((r + 0.5)/H, (c + 0.5)/W)); None: every cell, row by row. Yields a dict that
    is filled on leaving: module name -> map, or "module name/tap" for modules with several taps.
    """
    modules = {name: m for name, m in network.named_modules() if isinstance(m, Observable)}
    recorded: dict[str, AttentionMap] = {}
    for module in modules.values():
        module.listener = Listener(points)
    try:
        yield recorded
    finally:
        for name, module in modules.items():
            listener, module.listener = module.listener, None
            assert listener is not None
            for tap, found in listener.maps.items():
                recorded[name if len(module.taps) == 1 else f"{name}/{tap}"] = found


def cells_of(points: Tensor | None, height: int, width: int) -> Tensor:
    """Cells (row, column) that hold the fractional `points` on a height × width map; None: all cells."""
    if points is None:
        return torch.cartesian_prod(torch.arange(height), torch.arange(width))
    if points.numel() and not (points.min() >= 0 and points.max() < 1):
        raise ValueError("points are fractions of height and width: they must lie in [0, 1)")
    size = torch.tensor([height, width], dtype=torch.float64)
    return (points.double().cpu() * size).floor().long()


def require(condition: bool, rule: str) -> None:
    """Raise ValueError with the rule that a constructor's arguments break."""
    if not condition:
        raise ValueError(rule)

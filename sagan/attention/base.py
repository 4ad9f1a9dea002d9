"""What every attention mechanism is: a drop-in on feature maps, which can be looked at without changing its results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionMap:
    """What query points attend to. `kind` says how to read the numbers (attention.md, section 7)."""

    kind: str  # such as "softmax row": non-negative, sums to 1
    weights: Tensor  # (B, heads, k, H', W') at the resolution of the keys


@dataclass
class Listener:
    """Collects the maps of one module while `record_attention` is open."""

    points: Tensor | None
    maps: dict[str, AttentionMap] = field(default_factory=dict)


class HeldState(nn.Module):
    """A module with state that moves in training (running statistics, bases). While `held` it must not move."""

    held = False


class AttentionModule(nn.Module):
    """Maps (B, C, H, W) to (B, C, H, W).

    `taps` documents what can be looked at: name -> kind. A module calls `self.tap(name, rows)` in its forward, where
    `rows(points)` computes the maps of query cells from the query and key at hand; nobody listening, that costs one
    `is None`. What is listened to is computed beside the one path, never instead of it, and without gradient.
    """

    taps: ClassVar[dict[str, str]] = {}
    listener: Listener | None = None

    def __init__(self, channels: int, resolution: int | tuple[int, int]):
        super().__init__()
        self.channels = channels
        self.resolution = (resolution, resolution) if isinstance(resolution, int) else resolution

    def tap(self, name: str, rows: Callable[[Tensor], Tensor], size: torch.Size) -> None:
        """Give a listener the map `name` of a feature map of `size` (…, H, W)."""
        if self.listener is None:
            return
        with torch.no_grad():
            cells = cells_of(self.listener.points, size[-2], size[-1])
            self.listener.maps[name] = AttentionMap(self.taps[name], rows(cells).detach())

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
    modules = {name: m for name, m in network.named_modules() if isinstance(m, AttentionModule)}
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

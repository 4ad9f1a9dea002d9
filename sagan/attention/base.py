"""The base class of the attention mechanisms, and `record_attention`, which records their maps during a forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sagan.attention.functional import Edit
from sagan.layers.spectral_norm import hold_state

Size = int | tuple[int, int]  # of a map: its side, or (H, W)


@dataclass(frozen=True)
class Kind:
    """How to read attention maps of shape (B, heads, k, H', W').

    `per_query`: one map for each of the k query points; otherwise k = 1, the same map for every point. `spatial`: H'
    and W' are those of a feature map; otherwise H' = 1 and W' counts channels, bases or heads. `sums_to_one`: the
    dimensions over which the weights sum to 1.
    """

    per_query: bool
    spatial: bool
    sums_to_one: tuple[int, ...] = ()


ROW, HEADS = (-2, -1), (1,)
KINDS: dict[str, Kind] = {
    "softmax row": Kind(True, True, ROW),  # non-negative weights of the keys
    "signed weight": Kind(True, True),  # weights of the keys, of either sign, not normalized
    "unnormalised weight": Kind(True, True),  # non-negative weights of the keys, not normalized
    "sampling footprint": Kind(True, True),  # bilinear weights of the input cells; sum to 1 inside the map
    "responsibility": Kind(True, False, ROW),  # of each basis for the query point
    "basis map": Kind(False, True, HEADS),  # where each basis (a head) is responsible
    "gather map": Kind(False, True, ROW),  # where each descriptor (a head) is collected from
    "spatial gate": Kind(False, True),  # a factor in [0, 1] for each cell
    "channel gate": Kind(False, False),  # a factor in [0, 1] for each channel ([0, 2] where a sigmoid is doubled)
    "channel rows": Kind(False, False, (-1,)),  # (B, 1, 1, C, C): what each channel takes from the others
    "kernel choice": Kind(False, False, HEADS),  # share of each kernel (a head) in each channel
    "head gate": Kind(False, False),  # a factor in [0, 1] for each head
    "saliency": Kind(False, True),  # how much each cell matters to the logit, not normalized
    "boxes": Kind(False, False),  # (B, boxes, 1, 1, 4): top, left, bottom, right in fractions of the image
    "sampling grid": Kind(False, True),  # heads: row, column of the input that each cell reads, in cells
}


@dataclass(frozen=True)
class AttentionMap:
    """What query points attend to. `kind` is a key of KINDS, which tells how to read the weights."""

    kind: str
    weights: Tensor  # (B, heads, k, H', W') at the resolution of the keys


@dataclass
class Recorder:
    """Holds the maps of one module while `record_attention` is active."""

    points: Tensor | None
    maps: dict[str, AttentionMap] = field(default_factory=dict)


class Observable(nn.Module):
    """A module whose maps `record_attention` can record during a forward.

    `map_kinds`: name -> kind of each map. Its forward calls `self.record(name, rows, size)`, where `rows(cells)`
    computes the maps of the query cells. Without a recorder this costs one `is None`. Maps are computed in addition to
    the result, without gradient; they never change it.
    """

    map_kinds: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.recorder: Recorder | None = None  # set from the start: torch.compile guards on the attributes it finds

    def record(self, name: str, rows: Callable[[Tensor], Tensor], size: torch.Size) -> None:
        """Store the map `name` if there is a recorder. `size` (…, H, W): of the query map."""
        if self.recorder is None:
            return
        with torch.no_grad():
            cells = cells_of(self.recorder.points, size[-2], size[-1])
            self.recorder.maps[name] = AttentionMap(self.map_kinds[name], rows(cells).detach())


class AttentionModule(Observable):
    """Maps (B, C, H, W) to (B, C, H, W).

    `places`: after a block, on a block's residual branch before the addition, or instead of a 3×3 convolution ("conv").
    `gain`: "scalar" multiplies the change by a learned `gamma` that starts at 0; "none" is the paper's form.

    Every mechanism's constructor raises ValueError for an option out of range, an unknown word, or channels and maps
    that are too small for it.
    """

    places: tuple[str, ...] = ("after", "branch")
    pool: bool | str = False
    editable = False  # whether its map is one softmax over keys, which an Edit can change
    gamma: nn.Parameter | None

    def __init__(self, channels: int, resolution: Size, gain: str = "scalar"):
        super().__init__()
        require(gain in ("scalar", "none"), f"gain is {gain!r}; known: scalar, none")
        self.channels = channels
        self.resolution = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.gamma = nn.Parameter(torch.zeros(())) if gain == "scalar" else None
        self.edit: Edit | None = None  # set by `sagan.inspection.intervention`

    def added(self, x: Tensor, change: Tensor) -> Tensor:
        """The output of a residual mechanism: x + γ · change; without a gain x + change."""
        return x + change if self.gamma is None else x + self.gamma * change

    def blended(self, x: Tensor, replacement: Tensor) -> Tensor:
        """The output of a gate, warp or convolution: x + γ · (replacement - x); without a gain the replacement."""
        return replacement if self.gamma is None else x + self.gamma * (replacement - x)

    @property
    def map_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of its maps of queries and of keys, at its `resolution`."""
        height, width = self.resolution
        return self.resolution, self.resolution if self.pool in (False, "none") else (height // 2, width // 2)

    def require_poolable(self, size: Sequence[int]) -> None:
        """ValueError if the mechanism pools 2×2 and a map of `size` (H, W) is too small."""
        name = type(self).__module__.rpartition(".")[2]
        pooled = self.pool not in (False, "none")
        require(not pooled or min(size) >= 2, f"{name} pools 2x2: a map of {tuple(size)} is too small")

    def reset_parameters(self) -> None:
        """Set the initial values that the paper prescribes, after a network has initialized all of its layers."""

    def gains(self) -> dict[str, nn.Parameter]:
        """Its own parameters gamma…; when all of them are 0, the module is the identity."""
        own = self.named_parameters(recurse=False)
        return {name: parameter for name, parameter in own if name.startswith("gamma")}

    def pairs(self, height: int, width: int) -> int:
        """Query-key weights of one image, summed over heads; only unfused kernels store them. 0: none."""
        return 0

    @torch.no_grad()
    def attention_rows(self, x: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """Maps of `cells` (k, 2) or (B, k, 2), (row, column) in x (B, C, H, W): name -> (B, h, k, H', W').

        Takes one forward with state held; no state moves. Memory for k rows, not for all N.
        """
        size = torch.tensor(x.shape[2:], dtype=torch.float64)
        previous, self.recorder = self.recorder, Recorder((cells.double().cpu() + 0.5) / size)
        try:
            with hold_state(self):
                self(x)
            return {name: found.weights for name, found in self.recorder.maps.items()}
        finally:
            self.recorder = previous


def attention_modules(network: nn.Module) -> dict[str, AttentionModule]:
    """The attention modules of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AttentionModule)}


@contextmanager
def record_attention(network: nn.Module, points: Tensor | None = None) -> Iterator[dict[str, AttentionMap]]:
    """Record the attention maps of `network` during the forwards inside the block; the last forward is kept.

    `points` (k, 2) or (B, k, 2): fractions in [0, 1) of height and width, so that they fit every resolution (the center
    of image pixel (r, c) is ((r + 0.5)/H, (c + 0.5)/W)); None: every cell, row by row. Yields a dict that is filled on
    exit: module name -> map, or "module name/map name" for modules with several maps. Raises ValueError for points
    outside [0, 1).

    Examples:
        >>> from sagan.attention import SelfAttention
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), SelfAttention(16, 8))
        >>> with sagan.record_attention(network, torch.tensor([[0.5, 0.5]])) as maps, torch.no_grad():
        ...     features = network(torch.randn(2, 3, 8, 8))
        >>> maps["1"].kind, maps["1"].weights.shape  # (images, heads, points, H', W')
        ('softmax row', torch.Size([2, 1, 1, 4, 4]))
    """
    modules = {name: m for name, m in network.named_modules() if isinstance(m, Observable)}
    recorded: dict[str, AttentionMap] = {}
    recorders = {name: Recorder(points) for name in modules}
    for name, module in modules.items():
        module.recorder = recorders[name]
    try:
        yield recorded
    finally:
        for name, module in modules.items():
            module.recorder = None
            for map_name, found in recorders[name].maps.items():
                recorded[name if len(module.map_kinds) == 1 else f"{name}/{map_name}"] = found


def cells_of(points: Tensor | None, height: int, width: int) -> Tensor:
    """Cells (row, column) of a height × width map that contain the fractional `points`; None: all cells."""
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

"""Spatial Transformer Networks. Jaderberg, Simonyan, Zisserman, Kavukcuoglu. arXiv:1506.02025, NIPS 2015.

Differs from the paper: θ = θ_id + γ·loc(x), with γ initially 0 instead of zero weights, which spectral normalization
could not divide (`gain="none"`: θ = θ_id + loc(x)). By default the map is mirrored at its borders instead of padded
with zeros: a warp that leaves the map still passes a gradient to θ and x, and adds no black borders that D could
detect.

Bilinear sampling is written out, because torch 2.11's grid_sample has no second derivative, which R1 needs, rounds the
coordinates of the identity, and has no deterministic mode on CUDA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.layers.precision import full_precision

NUMBERS = {"affine": 6, "similarity": 4, "zoom": 3}
PADDINGS = ("reflection", "border", "zeros")


class SpatialTransformer(AttentionModule):
    """y(p) = x at θ·(p, 1), bilinearly (eqs. 1, 5), θ = θ_id + γ·loc(x).

    Coordinates (x, y) run from -1 to 1 between the outer edges of the map (align_corners false), so θ means the same at
    every size; on a rectangular map a rotation is one in these units. `transform`: what is added to
    the identity, "affine" (6 numbers), "similarity" [[a, -b, s], [b, a, t]] or "zoom" [[a, 0, s], [0, a, t]] (eq. 2).
    `padding`: what lies outside: "reflection", "border" or "zeros" (the paper's). loc: twice convolution 3×3, 2×2
    max-pooling, ReLU with `width` channels, averaged to at most 4×4, a layer of `width`, ReLU, a layer to θ; it takes
    maps of any size. Maps: "footprint", the bilinear weights of the input cells for an output cell, and "grid", the row
    and column that every output cell reads, in cells, before padding moves them into the map.
    """

    map_kinds = {"footprint": "sampling footprint", "grid": "sampling grid"}

    def __init__(
        self, channels: int, resolution: Size, *, transform: str = "affine", padding: str = "reflection",
        width: int = 32, gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(transform in NUMBERS, f"spatial_transformer: transform is {transform!r}; known: {', '.join(NUMBERS)}")
        require(padding in PADDINGS, f"spatial_transformer: padding is {padding!r}; known: {', '.join(PADDINGS)}")
        require(width >= 1, f"spatial_transformer: width is {width}, it must be at least 1")
        self.transform, self.padding = transform, padding
        down, across = (min(4, _half(_half(side))) for side in self.resolution)
        self.pooled = (down, across)  # size of the map that the last layers of loc read
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.hidden = nn.Linear(width * self.pooled[0] * self.pooled[1], width)
        self.theta = nn.Linear(width, NUMBERS[transform])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Without a gain, start close to the identity as in the paper; spectral normalization undoes that."""
        if self.gamma is None:
            nn.init.normal_(self.theta.weight, std=1e-3)
            nn.init.zeros_(self.theta.bias)

    def forward(self, x: Tensor) -> Tensor:
        position = self._positions(x)  # (B, 2, H, W)
        self.record("footprint", lambda points: self._footprint(position, points), x.shape)
        self.record("grid", lambda _: position[:, :, None], x.shape)
        return self._read(x, position)

    def _positions(self, x: Tensor) -> Tensor:
        """Row and column, in cells, that every output cell reads: exactly its own plus the change by γ·loc(x)."""
        change = self._localize(x)  # (B, 2, 3)
        height, width = x.shape[2:]
        rows, columns = (torch.arange(n, dtype=change.dtype, device=x.device) for n in (height, width))
        down, across = (2 * rows + 1)[:, None] / height - 1, (2 * columns + 1) / width - 1  # (H, 1), (W,)
        by_x, by_y, constant = (change[:, :, i, None, None] for i in range(3))  # (B, 2, 1, 1)
        moved = by_x * across + by_y * down + constant  # (B, 2, H, W): x and y
        return torch.stack([rows[:, None] + moved[:, 1] * (height / 2), columns + moved[:, 0] * (width / 2)], dim=1)

    def _localize(self, x: Tensor) -> Tensor:
        """θ - θ_id (B, 2, 3), in float32 or wider, because rounding would shift the whole map."""
        with full_precision(x.device):
            h = x.to(self.hidden.bias.dtype)
            h = F.relu(F.max_pool2d(self.conv1(h), 2, ceil_mode=True))
            h = F.relu(F.max_pool2d(self.conv2(h), 2, ceil_mode=True))  # (B, width, ⌈H/4⌉, ⌈W/4⌉)
            h = F.adaptive_avg_pool2d(h, self.pooled).flatten(1)
            theta = self.theta(F.relu(self.hidden(h)))  # (B, 6), (B, 4) or (B, 3)
        theta = theta if self.gamma is None else self.gamma * theta
        if self.transform == "affine":
            return theta.unflatten(1, (2, 3))
        scale, shift_x, shift_y = theta[:, 0], theta[:, -2], theta[:, -1]
        turn = theta[:, 1] if self.transform == "similarity" else torch.zeros_like(scale)
        return torch.stack([scale, -turn, shift_x, turn, scale, shift_y], dim=1).unflatten(1, (2, 3))

    def _read(self, x: Tensor, position: Tensor) -> Tensor:
        """x (B, C, H, W) at positions (B, 2, H, W), in cells -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (B·H·W, C)
        first = torch.arange(batch, device=x.device)[:, None, None] * (height * width)
        read = position.new_zeros(())
        for row, over_row in self._neighbors(position[:, 0], height):
            for column, over_column in self._neighbors(position[:, 1], width):
                weight = (over_row * over_column).reshape(-1, 1)  # (B·H·W, 1)
                picked = cells.index_select(0, (first + row * width + column).flatten())
                read = torch.addcmul(read, weight, picked)
        return read.to(x.dtype).unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)

    def _neighbors(self, position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
        """The two cells of one axis around positions (B, H, W), and their weights."""
        position = self._folded(position, size)
        before = position.detach().floor()
        share = position - before
        found = []
        for cell, weight in ((before, 1 - share), (before + 1, share)):
            if self.padding == "zeros":
                weight = torch.where((cell >= 0) & (cell < size), weight, 0)
            found.append((cell.long().clamp(0, size - 1), weight))
        return found

    def _folded(self, position: Tensor, size: int) -> Tensor:
        """Positions on one axis, moved into the map by the padding; reflection is at -1/2 and size - 1/2."""
        if self.padding == "zeros":
            return position
        if self.padding == "reflection":
            position = (position + 0.5) % (2 * size)
            position = torch.minimum(position, 2 * size - position) - 0.5
        return position.clamp(0, size - 1)

    def _footprint(self, position: Tensor, points: Tensor) -> Tensor:
        """Bilinear weights of the input cells: a hat over the rows times a hat over the columns (eq. 5)."""
        points = points.to(position.device).expand(len(position), -1, 2)  # (B, k, 2)
        index = points[..., 0] * position.shape[3] + points[..., 1]
        chosen = position.flatten(2).gather(2, index[:, None].expand(-1, 2, -1))  # (B, 2, k)
        over_rows, over_columns = (self._hat(chosen[:, i], position.shape[2 + i]) for i in (0, 1))
        return (over_rows[..., :, None] * over_columns[..., None, :])[:, None]  # (B, 1, k, H, W)

    def _hat(self, position: Tensor, size: int) -> Tensor:
        """Weights (B, k, size) of the cells of one axis at positions (B, k)."""
        cells = torch.arange(size, dtype=position.dtype, device=position.device)
        return (1 - (self._folded(position, size)[..., None] - cells).abs()).clamp(min=0)


def _half(side: int) -> int:
    return (side + 1) // 2

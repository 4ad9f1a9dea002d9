"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases. d'Ascoli et al. arXiv:2103.10697.

Differs from the paper: one layer on a feature map, without class token or patches; all heads start local, also when
their number is not a square; the bias of the positional logits is left out, for a softmax does not see it; rows are
not normalised again, for they already sum to 1. Maps of any size and shape.
"""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, require
from sagan.attention.functional import at_least_float32, dot_product_attention, dot_product_weights, select_points


class GatedPositional(AttentionModule):
    """y = x + γ·W_o concat_h[A^h V^h], of LayerNorm(x): gated positional self-attention (eqs. 6-8).

    A^h = (1 - σ(g_h))·softmax(q·k/√d) + σ(g_h)·softmax_j(w_h·r_ij), r = (δx, δy, δx² + δy²), δ = key - query in cells.
    The positional softmax is the same for all samples and is a product of a softmax over columns and one over rows:
    it is applied as two small matrix products, exact in O(h·(H² + W²)) memory.

    At first w_h = α·(2Δx, 2Δy, -1): head h attends to the cell at offset Δ_h, more sharply with larger `locality` α.
    The offsets are the h nearest to the centre of the smallest square grid that holds them (4, 9, 16: the paper's, in
    its order). V starts as the identity, g at 1. `mlp`: the block's second half, x + MLP(LayerNorm(x)), 4·C wide; γ
    then stands before the change of the whole block. Maps of a query cell: rows of each head, gated, of content and of
    position alone; and the gates σ(g).

    Raises ValueError when heads do not divide C or locality is not above 0.
    """

    taps: Mapping[str, str] = {
        "attention": "softmax row",
        "content": "softmax row",
        "position": "softmax row",
        "gate": "head gate",
    }

    def __init__(
        self,
        channels: int,
        resolution: int | tuple[int, int],
        *,
        heads: int = 4,
        locality: float = 1.0,
        mlp: bool = False,
        gain: str = "scalar",
    ):
        super().__init__(channels, resolution, gain)
        require(
            heads >= 1 and channels % heads == 0, f"gated_positional: {heads} heads must divide {channels} channels"
        )
        require(locality > 0, f"gated_positional: locality is {locality}, it must be above 0")
        self.heads, self.locality, self.scale = heads, locality, (channels // heads) ** -0.5
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.empty(heads, 3))  # w
        self.gate = nn.Parameter(torch.empty(heads))  # g
        self.mlp = None
        if mlp:
            self.mlp = nn.Sequential(
                nn.LayerNorm(channels, eps=1e-6),
                nn.Linear(channels, 4 * channels),
                nn.GELU(),
                nn.Linear(4 * channels, channels),
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linears from a truncated normal (0.02), value the identity, w local, g = 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.eye_(self.value.weight)
        nn.init.ones_(self.gate)
        with torch.no_grad():
            for weights, (x, y) in zip(self.position, local_offsets(self.heads), strict=True):
                weights.copy_(self.locality * torch.tensor([2 * x, 2 * y, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        query, key, normed = self._query_key(x)
        self.tap("attention", lambda points: self._attention(query, key, points, x.shape), x.shape)
        self.tap("content", lambda points: self._content(query, key, points, x.shape), x.shape)
        self.tap("position", lambda points: self._position(points, x.shape), x.shape)
        self.tap("gate", lambda points: self._gate(x.shape), x.shape)
        value = self._split(self.value(normed))  # (B, h, N, d)
        by_content = dot_product_attention(query, key, value, self.scale)
        by_rows, by_columns = (f.to(value) for f in self._position_factors(*x.shape[2:]))  # (h, H, H), (h, W, W)
        by_position = torch.einsum("hxi,bhyid->bhyxd", by_columns, value.unflatten(2, x.shape[2:]))
        by_position = torch.einsum("hyj,bhjxd->bhyxd", by_rows, by_position).flatten(2, 3)  # (B, h, N, d)
        gate = self.gate.sigmoid()[:, None, None]
        change = self.out(((1 - gate) * by_content + gate * by_position).transpose(1, 2).flatten(2))  # (B, N, C)
        if self.mlp is not None:
            change = change + self.mlp(x.flatten(2).mT + change)
        return self.added(x, change.mT.unflatten(2, x.shape[2:]))

    def attention_rows(self, x: Tensor, points: Tensor) -> dict[str, Tensor]:
        query, key, _ = self._query_key(x)
        return {
            "attention": self._attention(query, key, points, x.shape),
            "content": self._content(query, key, points, x.shape),
            "position": self._position(points, x.shape),
            "gate": self._gate(x.shape),
        }

    def macs(self, height: int, width: int) -> int:
        cells, width_of_mlp = height * width, 4 * self.channels if self.mlp is not None else 0
        linears = cells * self.channels * (4 * self.channels + 2 * width_of_mlp)
        return linears + cells * self.channels * (2 * cells + height + width)

    def pairs(self, height: int, width: int) -> int:
        return self.heads * (height * width) ** 2

    def _query_key(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query and key (B, h, N, d), and the normalised tokens (B, N, C) that they were made of."""
        normed = self.norm(x.flatten(2).mT)
        return self._split(self.query(normed)), self._split(self.key(normed)), normed

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, h, N, d)

    def _position_factors(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """softmax_j(w·r_ij) = R[iy, jy]·S[ix, jx]: R (h, H, H) and S (h, W, W), in float32 or wider."""
        weights = at_least_float32(self.position)
        along_x, along_y, square = weights[:, :, None, None].unbind(dim=1)  # (h, 1, 1)
        rows, columns = _differences(height, weights), _differences(width, weights)
        return (along_y * rows + square * rows**2).softmax(2), (along_x * columns + square * columns**2).softmax(2)

    def _attention(self, query: Tensor, key: Tensor, points: Tensor, size: torch.Size) -> Tensor:
        content, position = self._content(query, key, points, size), self._position(points, size)
        gate = self.gate.sigmoid()[:, None, None, None]
        return (1 - gate) * content + gate * position

    def _content(self, query: Tensor, key: Tensor, points: Tensor, size: torch.Size) -> Tensor:
        chosen = select_points(query, points.to(query.device), size[3])  # (B, h, k, d)
        return dot_product_weights(chosen, key, self.scale).unflatten(3, size[2:])  # (B, h, k, H, W)

    def _position(self, points: Tensor, size: torch.Size) -> Tensor:
        points = points.to(self.position.device).expand(size[0], -1, 2)  # (B, k, 2)
        by_rows, by_columns = self._position_factors(*size[2:])
        rows, columns = by_rows[:, points[..., 0]], by_columns[:, points[..., 1]]  # (h, B, k, H), (h, B, k, W)
        return (rows.unsqueeze(4) * columns.unsqueeze(3)).transpose(0, 1)  # (B, h, k, H, W)

    def _gate(self, size: torch.Size) -> Tensor:
        return self.gate.sigmoid().expand(size[0], 1, 1, 1, -1)


def local_offsets(heads: int) -> list[tuple[float, float]]:
    """Offsets (Δx, Δy) of the heads at first: those of the smallest square grid, the nearest to its centre.

    Head h1 + k·h2 of the k×k grid has Δ = (h2 - c, h1 - c), c = (k - 1)/2; of equally near ones the first are taken.
    """
    side = isqrt(heads - 1) + 1
    centre = (side - 1) / 2
    grid = [(right - centre, down - centre) for right in range(side) for down in range(side)]
    nearest = sorted(grid, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)[:heads]
    return [offset for offset in grid if offset in nearest]


def _differences(length: int, like: Tensor) -> Tensor:
    """Key - query along an axis, (L, L) as [query, key]."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    return places - places[:, None]

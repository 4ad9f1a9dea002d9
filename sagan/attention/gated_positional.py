"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases. d'Ascoli et al. arXiv:2103.10697.

Differs from the paper: one layer on a feature map, without class token or patches; all heads start local, even if
their number is not a square; no bias of the positional logits, because a softmax ignores it; rows are not normalized
again, because they already sum to 1. Maps of any size and shape.
"""

from math import isqrt

import torch
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import dot_product_attention, make_mlp, softmax_rows, split_heads
from sagan.layers.precision import at_least_float32


class GatedPositional(AttentionModule):
    """y = x + γ·W_o concat_h[A^h V^h], of LayerNorm(x): gated positional self-attention (eqs. 6-8).

    A^h = (1 - σ(g_h))·softmax(q·k/√d) + σ(g_h)·softmax_j(w_h·r_ij), r = (δx, δy, δx² + δy²), δ = key - query in cells.
    The positional softmax is the same for all images and factorizes into a softmax over columns and one over rows. It
    is applied as two small matrix products: exact, in O(h·(H² + W²)) memory.

    Initially w_h = α·(2Δx, 2Δy, -1): head h attends to the cell at offset Δ_h, more sharply for larger `locality` α.
    The offsets are the h nearest to the center of the smallest square grid that holds them (4, 9, 16: the paper's, in
    its order). V starts as the identity, g at 1. `mlp`: adds the second half of the block, x + MLP(LayerNorm(x)), 4·C
    wide; γ then scales the change of the whole block. Maps of a query cell: gated rows of each head, rows of content
    and of position alone, and the gates σ(g).
    """

    map_kinds = dict.fromkeys(("attention", "content", "position"), "softmax row") | {"gate": "head gate"}

    def __init__(
        self, channels: int, resolution: Size, *, heads: int = 4, locality: float = 1.0, mlp: bool = False,
        gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        fits = heads >= 1 and channels % heads == 0
        require(fits, f"gated_positional: {heads} heads must divide {channels} channels")
        require(locality > 0, f"gated_positional: locality is {locality}, it must be above 0")
        self.heads, self.locality, self.scale = heads, locality, (channels // heads) ** -0.5
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.empty(heads, 3))  # w
        self.gate = nn.Parameter(torch.empty(heads))  # g
        self.mlp = make_mlp(channels, 4) if mlp else None
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
        normed = self.norm(x.flatten(2).mT)  # (B, N, C)
        query, key, value = (split_heads(layer(normed), self.heads) for layer in (self.query, self.key, self.value))
        gate, size = self.gate.sigmoid()[:, None, None], (x.shape[2], x.shape[3])

        def content(cells: Tensor) -> Tensor:
            return softmax_rows(query, key, cells, size[1], size, self.scale)  # (B, h, k, H, W)

        def position(cells: Tensor) -> Tensor:
            return self._position_rows(cells.to(x.device).expand(len(x), -1, 2), *size)

        def gated(cells: Tensor) -> Tensor:
            return (1 - gate[..., None]) * content(cells) + gate[..., None] * position(cells)

        self.record("attention", gated, x.shape)
        self.record("content", content, x.shape)
        self.record("position", position, x.shape)
        self.record("gate", lambda _: gate.view(-1).expand(len(x), 1, 1, 1, -1), x.shape)
        by_content = dot_product_attention(query, key, value, self.scale)
        by_rows, by_columns = (f.to(value) for f in self._position_factors(*size))  # (h, H, H), (h, W, W)
        by_position = torch.einsum("hxi,bhyid->bhyxd", by_columns, value.unflatten(2, size))
        by_position = torch.einsum("hyj,bhjxd->bhyxd", by_rows, by_position).flatten(2, 3)  # (B, h, N, d)
        change = self.out(((1 - gate) * by_content + gate * by_position).transpose(1, 2).flatten(2))  # (B, N, C)
        if self.mlp is not None:
            change = change + self.mlp(x.flatten(2).mT + change)
        return self.added(x, change.mT.unflatten(2, size))

    def pairs(self, height: int, width: int) -> int:
        return self.heads * (height * width) ** 2

    def _position_factors(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """softmax_j(w·r_ij) = R[iy, jy]·S[ix, jx]: R (h, H, H) and S (h, W, W), in float32 or wider."""
        weights = at_least_float32(self.position)
        along_x, along_y, square = weights[:, :, None, None].unbind(dim=1)  # (h, 1, 1)
        rows, columns = _differences(height, weights), _differences(width, weights)
        return (along_y * rows + square * rows**2).softmax(2), (along_x * columns + square * columns**2).softmax(2)

    def _position_rows(self, cells: Tensor, height: int, width: int) -> Tensor:
        """Rows of the positional softmax of cells (B, k, 2): (B, h, k, H, W)."""
        by_rows, by_columns = self._position_factors(height, width)
        rows, columns = by_rows[:, cells[..., 0]], by_columns[:, cells[..., 1]]  # (h, B, k, H), (h, B, k, W)
        return (rows.unsqueeze(4) * columns.unsqueeze(3)).transpose(0, 1)  # (B, h, k, H, W)


def local_offsets(heads: int) -> list[tuple[float, float]]:
    """Initial offsets (Δx, Δy) of the heads: those of the smallest square grid that are nearest to its center.

    Head h1 + k·h2 of the k×k grid has Δ = (h2 - c, h1 - c), c = (k - 1)/2; ties take the first.
    """
    side = isqrt(heads - 1) + 1
    center = (side - 1) / 2
    grid = [(right - center, down - center) for right in range(side) for down in range(side)]
    nearest = sorted(grid, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)[:heads]
    return [offset for offset in grid if offset in nearest]


def _differences(length: int, like: Tensor) -> Tensor:
    """Key - query along an axis, (L, L) as [query, key]."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    return places - places[:, None]

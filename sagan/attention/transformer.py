"""An Image is Worth 16x16 Words. Dosovitskiy et al. arXiv:2010.11929, ICLR 2021: the encoder block, on a feature map.

Differs from the paper: every cell is a token, without patches or class token; positions are added in this single
block; no dropout. GELU is the released code's tanh form; `gelu: exact` is the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import dot_product_attention, largest_divisor, make_mlp, softmax_rows, split_heads

GELU = {"tanh": "tanh", "exact": "none"}  # option -> torch's name
POSITIONS = ("learned", "sincos", "none")


class Transformer(AttentionModule):
    """y = x + γ·(T(x) - x), T the pre-norm encoder block (eqs. 1-3):

    t = x + P;  u = t + W_o·MSA(LN(t));  T = u + W_2·GELU(W_1·LN(u)),  MSA: softmax(q·k/√d) v in each head, LN eps 1e-6.

    `heads`: 0 selects the largest divisor of C up to C/64, at least 1. `ratio`: width of the MLP over C. `position`
    P: "learned" (C, H, W), interpolated bicubically to maps of other sizes; "sincos", of row and column; "none".
    `gelu`: "tanh" or "exact". Map of a query cell: the softmax row of each head of this block's attention.
    """

    map_kinds = {"attention": "softmax row"}
    editable = True

    def __init__(
        self, channels: int, resolution: Size, *, heads: int = 0, ratio: int = 4, position: str = "learned",
        gelu: str = "tanh", gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        self.heads = heads or largest_divisor(channels, max(1, channels // 64))
        fits = self.heads >= 1 and channels % self.heads == 0
        require(fits, f"transformer: {heads} heads must divide {channels} channels")
        require(ratio >= 1, f"transformer: ratio is {ratio}, it must be at least 1")
        require(position in POSITIONS, f"transformer: position is {position!r}; known: {', '.join(POSITIONS)}")
        require(gelu in GELU, f"transformer: gelu is {gelu!r}; known: {', '.join(GELU)}")
        fits = position != "sincos" or channels % 4 == 0
        require(fits, f"transformer: position sincos needs channels divisible by 4, not {channels}")
        self.position, self.scale = position, (channels // self.heads) ** -0.5
        table = torch.empty(1, channels, *self.resolution) if position == "learned" else None
        self.position_table = None if table is None else nn.Parameter(table)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.mlp = make_mlp(channels, ratio, GELU[gelu])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights Xavier-uniform, biases 0, of the MLP N(0, 1e-6); learned positions N(0, 0.02)."""
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in self.mlp:
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
        if self.position_table is not None:
            nn.init.normal_(self.position_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        positions, size = self._positions(x), (x.shape[2], x.shape[3])
        start = (x if positions is None else x + positions).flatten(2).mT  # (B, N, C)
        normed = self.norm(start)
        query, key, value = (split_heads(layer(normed), self.heads) for layer in (self.query, self.key, self.value))
        place = size[1], size, self.scale, self.edit
        self.record("attention", lambda cells: softmax_rows(query, key, cells, *place), x.shape)
        attended = dot_product_attention(query, key, value, self.scale, self.edit)  # (B, h, N, d)
        change = self.out(attended.transpose(1, 2).flatten(2))  # (B, N, C)
        change = (change + self.mlp(start + change)).mT.unflatten(2, x.shape[2:])  # (B, C, H, W)
        return self.added(x, change if positions is None else change + positions)

    def pairs(self, height: int, width: int) -> int:
        return self.heads * (height * width) ** 2

    def _positions(self, x: Tensor) -> Tensor | None:
        """(1, C, H, W) for this map."""
        if self.position == "sincos":
            device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
            return sine_positions(self.channels, x.shape[2], x.shape[3], device).to(x)
        table = self.position_table
        if table is None or table.shape[2:] == x.shape[2:]:
            return table
        return F.interpolate(table, x.shape[2:], mode="bicubic")


def sine_positions(channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of column, then of row, a quarter of the channels each: (1, C, H, W) in float64.

    Frequencies 10000^(-i/(C/4)), Vaswani et al. 2017 (arXiv:1706.03762, section 3.5), in two dimensions.
    """
    quarter, across, down = (
        torch.arange(count, dtype=torch.float64, device=device) for count in (channels // 4, width, height)
    )
    frequencies = 10000.0 ** (-quarter * 4 / channels)
    columns = torch.outer(frequencies, across)[:, None].expand(-1, height, -1)
    rows = torch.outer(frequencies, down)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()])[None]

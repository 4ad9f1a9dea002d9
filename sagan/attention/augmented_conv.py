"""Attention Augmented Convolutional Networks. Bello, Zoph, Vaswani, Shlens, Le. arXiv:1904.09925, ICCV 2019.

Differs from the paper: `heads` 0 ensures the paper's minimum of 20 key channels per head by using fewer heads, not by
widening the keys; no batch norm; `pool` averages 2×2. The relative logits are exact, without any (N, N) tensor.
"""

from collections.abc import Iterator
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import dot_product_attention, edited_softmax, feature_map, select_points, tokens
from sagan.layers.precision import full_precision


class AugmentedConv(AttentionModule):
    """concat[conv3×3(x), W_o·MHA(x)]: C - dv channels of convolution beside dv of attention (eqs. 1-5).

    Logit of query i and key j: d^-1/2 · q_iᵀ(k_j + r^W_{jx-ix} + r^H_{jy-iy}) (eq. 3), d = dk/heads; tables r^W
    (2W - 1, d) and r^H (2H - 1, d) are shared by the heads. q, k, v come from one 1×1 convolution with bias.

    For one query, q_i·r^W_{jx-ix} takes only W values, one per column, and q_i·r^H_{jy-iy} only H. Appended to the
    query, with a one-hot column and row appended to the key, they turn relative attention into a plain dot product of
    width d + W + H, which the fused kernel computes exactly in O(N·(d + W + H)) memory per head. Under autocast they
    are rounded once, like q and k; the kernel accumulates in float32.

    `heads`: 0 selects the most heads, up to 8, that divide dk and dv and have 20 key channels each, at least 1.
    `key_ratio`, `value_ratio`: dk and dv as fractions of C; dv = C leaves no convolution. `relative`: with tables,
    which fix the map size. `pool`: attention on the 2×2 averaged map (a last odd row or column is not seen), its result
    upsampled bilinearly. Map of a query cell: its softmax row of each head; pooled, the bilinear mixture of the rows
    that it reads, on the pooled map.
    """

    places = ("after", "branch", "conv")
    map_kinds = {"attention": "softmax row"}
    editable = True

    def __init__(
        self, channels: int, resolution: Size, *, heads: int = 0, key_ratio: float = 1 / 2,
        value_ratio: float = 1 / 4, relative: bool = True, pool: bool = False, gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        keys, values = round(channels * key_ratio), round(channels * value_ratio)
        require(
            keys >= 1 and 1 <= values <= channels,
            f"augmented_conv: {keys} key and {values} value channels of {channels}; at least 1 each and at most "
            f"{channels} values; change key_ratio or value_ratio",
        )
        enough = (n for n in range(8, 1, -1) if gcd(keys, values) % n == 0 and keys // n >= 20)
        self.heads = heads or next(enough, 1)
        fits = self.heads >= 1 and keys % self.heads == values % self.heads == 0
        require(fits, f"augmented_conv: {heads} heads must divide its {keys} key and {values} value channels")
        self.keys, self.values, self.pool, width = keys, values, pool, keys // self.heads
        self.require_poolable(self.resolution)
        self.scale, self.stride = width**-0.5, 2 if pool else 1
        self.conv = nn.Conv2d(channels, channels - values, 3, padding=1) if values < channels else None
        self.qkv = nn.Conv2d(channels, 2 * keys + values, 1)
        self.out = nn.Conv2d(values, values, 1)
        rows, columns = (side // self.stride for side in self.resolution)
        self.row_table = nn.Parameter(torch.empty(2 * rows - 1, width)) if relative else None
        self.column_table = nn.Parameter(torch.empty(2 * columns - 1, width)) if relative else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Tables from N(0, 1/d)."""
        for table in (self.row_table, self.column_table):
            if table is not None:
                nn.init.normal_(table, std=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.row_table is not None and tuple(x.shape[2:]) != self.resolution:
            raise ValueError(
                f"augmented_conv was built for maps of {self.resolution}, not {tuple(x.shape[2:])}: its relative "
                "tables fix the size; relative false takes any"
            )
        seen = F.avg_pool2d(x, 2) if self.pool else x  # (B, C, H', W')
        query, key, value = self.qkv(seen).split([self.keys, self.keys, self.values], dim=1)
        self.record("attention", lambda points: self._rows(query, key, points, x.shape), x.shape)
        attended = dot_product_attention(*self._extended(query, key), tokens(value, self.heads), self.scale, self.edit)
        attended = self.out(feature_map(attended, *query.shape[2:]))  # (B, dv, H', W')
        if self.pool:
            attended = F.interpolate(attended, x.shape[2:], mode="bilinear")
        return self.blended(x, attended if self.conv is None else torch.cat([self.conv(x), attended], dim=1))

    @property
    def map_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        keys = super().map_sizes[1]
        return keys, keys  # queries are pooled, too

    def pairs(self, height: int, width: int) -> int:
        return self.heads * ((height // self.stride) * (width // self.stride)) ** 2

    def _extended(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of query and key, (B, h, N, d); with tables (B, h, N, d + W + H), as the class describes."""
        q, k = tokens(query, self.heads), tokens(key, self.heads)  # (B, h, N, d)
        if self.row_table is None or self.column_table is None:
            return q, k
        height, width = query.shape[2:]
        cells = q.unflatten(2, (height, width))  # (B, h, H, W, d)
        by_column = torch.einsum("bhyxd,xcd->bhyxc", cells, _differences(self.column_table, width))
        by_row = torch.einsum("bhyxd,yrd->bhyxr", cells, _differences(self.row_table, height))
        columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)  # (N, W)
        rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)  # (N, H)
        where = torch.cat([columns, rows], dim=1).expand(*k.shape[:2], -1, -1)  # (B, h, N, W + H)
        return torch.cat([q, by_column.flatten(2, 3), by_row.flatten(2, 3)], dim=3), torch.cat([k, where], dim=3)

    def _rows(self, query: Tensor, key: Tensor, points: Tensor, size: torch.Size) -> Tensor:
        points = points.to(query.device)
        if not self.pool:
            return self._softmax_rows(query, key, points)
        mixed = []
        for corners, shares in _bilinear_corners(points, size[2:], query.shape[2:]):
            rows = self._softmax_rows(query, key, corners)  # (B, h, k, H', W')
            mixed.append(rows * shares.to(rows).unsqueeze(-2)[..., None, None])  # (1, k, 1, 1) or (B, 1, k, 1, 1)
        return torch.stack(mixed).sum(dim=0)

    def _softmax_rows(self, query: Tensor, key: Tensor, points: Tensor) -> Tensor:
        """Rows of cells of the (pooled) map, in float32 or wider: (B, h, k, H', W')."""
        height, width = query.shape[2:]
        wide = torch.promote_types(query.dtype, torch.float32)
        with full_precision(query.device):
            chosen = select_points(tokens(query, self.heads).to(wide), points, width)  # (B, h, k, d)
            keys = tokens(key, self.heads).to(wide)
            if self.edit is not None and self.edit.keys is not None:
                keys = keys[self.edit.keys]
            logits = (chosen @ keys.mT).unflatten(3, (height, width))
            if self.row_table is not None and self.column_table is not None:
                logits = logits + _at(chosen @ self.row_table.mT.to(wide), points[..., 0], height).unsqueeze(4)
                logits = logits + _at(chosen @ self.column_table.mT.to(wide), points[..., 1], width).unsqueeze(3)
            cut = None if self.edit is None else self.edit.cut
            if cut is not None:
                cut = select_points(cut.expand(len(query), self.heads, height * width, -1), points, width)
            return edited_softmax((self.scale * logits).flatten(3), cut).unflatten(3, (height, width))


def _differences(table: Tensor, length: int) -> Tensor:
    """Table of differences (2L - 1, d) -> (L, L, d): entry [query, key] belongs to key - query."""
    places = torch.arange(length, device=table.device)
    return table[places - places[:, None] + length - 1]


def _at(products: Tensor, places: Tensor, length: int) -> Tensor:
    """Products with a table (B, h, k, 2L - 1), query places (k,) or (B, k) -> those of keys 0…L-1, (B, h, k, L)."""
    index = torch.arange(length, device=places.device) - places[..., None] + length - 1  # (k, L) or (B, k, L)
    return products.gather(3, index.unsqueeze(-3).expand(*products.shape[:3], length))


def _bilinear_corners(points: Tensor, size: torch.Size, pooled: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pooled cells (…, k, 2) that bilinear upsampling reads for each point, with their shares (…, k)."""
    limits = torch.tensor(pooled, device=points.device)
    scale = limits / torch.tensor(size, device=points.device).double()
    source = ((points.double() + 0.5) * scale - 0.5).clamp(min=0)
    low = source.long()
    part = source - low  # (…, k, 2)
    for shift in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 2):
        yield torch.minimum(low + shift, limits - 1), torch.where(shift == 1, part, 1 - part).prod(dim=-1)

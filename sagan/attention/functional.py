"""Attention as functions of query, key and value; the modules hold the weights."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.normalization import BatchNorm


def dot_product_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale · q kᵀ) v without ever holding the (N, M) weights.

    query (B, h, N, d), key (B, h, M, d), value (B, h, M, e) -> (B, h, N, e). Kernels that fuse want equal widths,
    in contiguous memory, so the narrower side is padded with zeros: exact, since zeros add nothing to a dot product
    and padded output channels are dropped.
    """
    width = max(query.shape[-1], value.shape[-1])
    if query.is_cuda:
        width = -(-width // 8) * 8  # its kernels want aligned rows
    out = F.scaled_dot_product_attention(
        _pad_to(query, width), _pad_to(key, width), _pad_to(value, width), scale=scale
    )  # (B, h, N, width)
    return out[..., : value.shape[-1]]


def dot_product_weights(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale · q kᵀ) itself, computed in float32 or wider: (B, h, k, d), (B, h, M, d) -> (B, h, k, M)."""
    query, key = at_least_float32(query), at_least_float32(key)
    with full_precision(query.device):
        return (scale * query @ key.transpose(-2, -1)).softmax(dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """x, or x in float32 where it is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off; the meta device knows none. (To ask torch breaks compiled graphs in torch 2.11.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def make_norm(name: str, channels: int) -> nn.Module:
    """The norm inside a mechanism: "none", "batch" (over all processes) or "group" (up to 32 groups that divide C)."""
    if name == "batch":
        return BatchNorm(channels, sync=True)
    if name == "group":
        return nn.GroupNorm(
            next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0), channels
        )
    if name == "none":
        return nn.Identity()
    raise ValueError(f"norm is {name!r}; known: none, batch, group")


def tokens(x: Tensor, heads: int = 1) -> Tensor:
    """(B, h·d, H, W) -> (B, h, H·W, d), rows of the map first."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def feature_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, h, H·W, d) -> (B, h·d, H, W), the inverse of `tokens`."""
    return x.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))


def select_points(x: Tensor, points: Tensor, width: int) -> Tensor:
    """Rows of tokens at cells: x (B, h, N, d), points (k, 2) or (B, k, 2) as (row, column) -> (B, h, k, d)."""
    index = points[..., 0] * width + points[..., 1]  # (k,) or (B, k)
    if index.ndim == 1:
        return x.index_select(2, index)
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _pad_to(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x.contiguous()

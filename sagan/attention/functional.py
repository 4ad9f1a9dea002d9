"""Functions of query, key and value that the mechanisms share."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.layers.normalization import BatchNorm
from sagan.layers.precision import at_least_float32, full_precision


@dataclass(frozen=True)
class Edit:
    """A change of one softmax attention, as `sagan.inspection.intervention` makes it.

    `cut`: bool, broadcastable to (B, h, N, M): edges from query to key whose logit becomes -inf. A query that keeps no
    edge takes nothing: its row is 0. `heads` (h,): a factor of each head's result. `keys`, `values` (B,): the image of
    the batch whose keys, or values, each image gets.
    """

    cut: Tensor | None = None
    heads: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0, edit: Edit | None = None
) -> Tensor:
    """softmax(scale · q kᵀ) v, without storing the (N, M) weights where a fused kernel runs.

    query (B, h, N, d), key (B, h, M, d), value (B, h, M, e) -> (B, h, N, e). Fused kernels need equal widths and
    contiguous memory, so the narrower side is padded with zeros. This is exact: zeros add nothing to a dot product, and
    padded output channels are dropped.
    """
    if edit is not None:
        return _edited_attention(query, key, value, scale, edit)
    width, dtype, precision = max(query.shape[-1], value.shape[-1]), value.dtype, nullcontext()
    if query.is_cuda:
        width = -(-width // 8) * 8  # CUDA kernels need aligned rows
    elif query.device.type == "cpu":  # its fused kernel is faster in float32 than in half precision
        precision = full_precision(query.device)
        query, key, value = (at_least_float32(x) for x in (query, key, value))
    with precision:
        out = F.scaled_dot_product_attention(
            _pad_to(query, width), _pad_to(key, width), _pad_to(value, width), scale=scale
        )  # (B, h, N, width)
    return out[..., : value.shape[-1]].to(dtype)


def softmax_rows(
    query: Tensor, key: Tensor, cells: Tensor, width: int, key_size: tuple[int, int], scale: float = 1.0,
    edit: Edit | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale · q kᵀ) of the query cells, in float32 or wider: (B, h, N, d), (B, h, M, d) -> (B, h, k, H', W').

    `cells` (k, 2) or (B, k, 2); `width`: of the query map; `key_size`: H', W' of the key map.
    """
    cut = None
    if edit is not None and edit.cut is not None:
        cut = select_points(edit.cut.expand(*query.shape[:3], key.shape[2]), cells, width)
    query, key = at_least_float32(select_points(query, cells, width)), at_least_float32(key)
    if edit is not None and edit.keys is not None:
        key = key[edit.keys]
    with full_precision(query.device):
        return edited_softmax(scale * query @ key.transpose(-2, -1), cut).unflatten(3, key_size)


def edited_softmax(logits: Tensor, cut: Tensor | None) -> Tensor:
    """Softmax over the last dimension without the edges that are `cut`; a row of which nothing is left is 0."""
    if cut is None:
        return logits.softmax(dim=-1)
    whole = cut.all(dim=-1, keepdim=True)
    return logits.masked_fill(cut & ~whole, -torch.inf).softmax(dim=-1).masked_fill(whole, 0)


def _edited_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, edit: Edit) -> Tensor:
    """Stores the (N, M) weights."""
    key = key if edit.keys is None else key[edit.keys]
    value = value if edit.values is None else value[edit.values]
    if edit.cut is None:
        out = dot_product_attention(query, key, value, scale)
    else:
        with full_precision(query.device):
            logits = scale * at_least_float32(query) @ at_least_float32(key).transpose(-2, -1)
            out = (edited_softmax(logits, edit.cut) @ at_least_float32(value)).to(value.dtype)
    return out if edit.heads is None else out * edit.heads.to(out)[:, None, None]


def make_norm(name: str, channels: int) -> nn.Module:
    """The norm inside a mechanism: "none", "batch" (over all processes) or "group" (the most groups, up to 32)."""
    if name == "batch":
        return BatchNorm(channels, sync=True)
    if name == "group":
        return nn.GroupNorm(largest_divisor(channels, 32), channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"norm is {name!r}; known: none, batch, group")


def make_mlp(channels: int, ratio: int, gelu: str = "none") -> nn.Sequential:
    """LayerNorm, C -> ratio·C, GELU, ratio·C -> C. `gelu`: torch's `approximate`."""
    inner = nn.Linear(channels, ratio * channels)
    return nn.Sequential(nn.LayerNorm(channels, eps=1e-6), inner, nn.GELU(gelu), nn.Linear(ratio * channels, channels))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`."""
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, h·d) -> (B, h, N, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def tokens(x: Tensor, heads: int = 1) -> Tensor:
    """(B, h·d, H, W) -> (B, h, H·W, d), row by row."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def feature_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, h, H·W, d) -> (B, h·d, H, W): the inverse of `tokens`."""
    return x.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))


def select_points(x: Tensor, points: Tensor, width: int) -> Tensor:
    """Tokens of cells: x (B, h, N, d), points (k, 2) or (B, k, 2) as (row, column) -> (B, h, k, d)."""
    points = points.to(x.device)
    index = points[..., 0] * width + points[..., 1]  # (k,) or (B, k)
    if index.ndim == 1:
        return x.index_select(2, index)
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _pad_to(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x.contiguous()

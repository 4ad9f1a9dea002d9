"""Attention-augmented convolution against its equations, one query at a time."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, projected, randomized
from torch import Tensor

from sagan.attention import make_attention

FORMS = [
    {"heads": 2},
    {"heads": 2, "value_ratio": 1.0, "key_ratio": 0.25},
    {"heads": 4, "relative": False},
    {"heads": 2, "pool": True},
    {"gain": "none"},
]
make = partial(randomized, "augmented_conv", 16, std=0.4)


def rows_of_head(q: Tensor, k: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Softmax rows, query by query: q, k (B, d, H, W) -> (B, N, N), both cells row by row."""
    height, width = q.shape[2:]
    cells = [(y, x) for y in range(height) for x in range(width)]
    rows = []
    for iy, ix in cells:
        query, logits = q[:, :, iy, ix], []
        for jy, jx in cells:
            key = k[:, :, jy, jx]
            if "row_table" in p:
                key = key + p["row_table"][jy - iy + height - 1] + p["column_table"][jx - ix + width - 1]
            logits.append((query * key).sum(1) / q.shape[1] ** 0.5)
        rows.append(torch.stack(logits, 1).softmax(1))
    return torch.stack(rows, 1)


def reference(
    x: Tensor, p: Mapping[str, Tensor], heads: int = 1, key_ratio: float = 0.5, value_ratio: float = 0.25,
    pool: bool = False, **_,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """y, and the rows of all query cells (B, h, N, H', W')."""
    keys, values = round(16 * key_ratio), round(16 * value_ratio)
    seen = F.avg_pool2d(x, 2) if pool else x
    each = zip(*(t.chunk(heads, 1) for t in projected(seen, "qkv", p).split([keys, keys, values], 1)), strict=True)
    rows, parts = [], []
    for q, k, v in each:
        rows.append(rows_of_head(q, k, p))
        parts.append((rows[-1] @ v.flatten(2).mT).mT.reshape(v.shape))
    attended, full = projected(torch.cat(parts, 1), "out", p), torch.stack(rows, 1).unflatten(3, seen.shape[2:])
    if pool:
        attended = F.interpolate(attended, x.shape[2:], mode="bilinear", align_corners=False)
        by_key = full.flatten(3).mT.flatten(1, 2).unflatten(2, seen.shape[2:])  # (B, h·M, H', W')
        by_key = F.interpolate(by_key, x.shape[2:], mode="bilinear").flatten(2).unflatten(1, (heads, -1))
        full = by_key.mT.unflatten(3, seen.shape[2:])
    if "conv.weight" in p:
        attended = torch.cat([F.conv2d(x, p["conv.weight"], p["conv.bias"], padding=1), attended], 1)
    return x + p.get("gamma", 1.0) * (attended - x), {"attention": full}


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 7)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(size, **options), draw(size, channels=16), reference, options)


def test_without_positions_any_size_serves():
    assert make((4, 4), relative=False)(draw((3, 6), channels=16)).shape == (2, 16, 3, 6)


def test_tables_start_at_the_papers_scale():
    """N(0, 1/d), of shape (2L - 1, d)."""
    tables = dict(make_attention("augmented_conv", 256, (32, 64), pool=True).named_parameters(recurse=False))
    assert tables["row_table"].shape == (31, 32)
    assert tables["column_table"].shape == (63, 32)
    assert 0.9 < tables["column_table"].std() * 32**0.5 < 1.1

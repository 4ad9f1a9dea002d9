"""Attention-augmented convolution against its equations, one query at a time."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_maps, assert_same_with_gradients, draw, projected, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

FORMS = [
    {"heads": 2},
    {"heads": 2, "value_ratio": 1.0, "key_ratio": 0.25},
    {"heads": 4, "relative": False},
    {"heads": 2, "pool": True},
    {"gain": "none"},
]


def make(size: tuple[int, int], **options) -> AttentionModule:
    return randomized("augmented_conv", 16, size, 0.4, **options)


def rows_of_head(q: Tensor, k: Tensor, p: Mapping[str, Tensor], mutant: str = "") -> Tensor:
    """Softmax rows, query by query: q, k (B, d, H, W) -> (B, N, N), both cells row by row."""
    height, width = q.shape[2:]
    scale = q.shape[1] ** -0.5
    rows = []
    for iy, ix in [(y, x) for y in range(height) for x in range(width)]:
        query, logits = q[:, :, iy, ix], []
        for jy, jx in [(y, x) for y in range(height) for x in range(width)]:
            content, place = (query * k[:, :, jy, jx]).sum(1), torch.zeros_like(query[:, 0])
            if "row_table" in p:
                dy, dx = (iy - jy, ix - jx) if mutant == "query - key" else (jy - iy, jx - ix)
                place = query @ (p["row_table"][dy + height - 1] + p["column_table"][dx + width - 1])
            logits.append(scale * content + place if mutant == "place not scaled" else scale * (content + place))
        rows.append(torch.stack(logits, 1).softmax(1))
    return torch.stack(rows, 1)


def reference(x: Tensor, p: Mapping[str, Tensor], options: dict, mutant: str = "") -> tuple[Tensor, Tensor]:
    """y, and the rows of all query cells (B, h, N, H', W')."""
    heads, keys = options.get("heads", 1), round(16 * options.get("key_ratio", 0.5))
    seen = F.avg_pool2d(x, 2) if options.get("pool") else x
    q, k, v = projected(seen, "qkv", p).split([keys, keys, round(16 * options.get("value_ratio", 0.25))], dim=1)
    rows = [rows_of_head(*pair, p, mutant) for pair in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True)]
    values = [part.flatten(2).mT for part in v.chunk(heads, 1)]  # (B, N, dv/h)
    parts = [row @ value for row, value in zip(rows, values, strict=True)]
    if mutant == "reshaped without transposing":
        attended = torch.stack(parts, 1).reshape(v.shape)
    else:
        attended = torch.cat(parts, 2).mT.reshape(v.shape)
    attended, full = projected(attended, "out", p), torch.stack(rows, 1).unflatten(3, seen.shape[2:])
    if options.get("pool"):
        attended = F.interpolate(attended, x.shape[2:], mode="bilinear", align_corners=False)
        by_key = full.flatten(3).mT.flatten(1, 2).unflatten(2, seen.shape[2:])  # (B, h·M, H', W')
        by_key = F.interpolate(by_key, x.shape[2:], mode="bilinear").flatten(2).unflatten(1, (heads, -1))
        full = by_key.mT.unflatten(3, seen.shape[2:])
    if "conv.weight" in p:
        attended = torch.cat([F.conv2d(x, p["conv.weight"], p["conv.bias"], padding=1), attended], 1)
    return (x + p["gamma"] * (attended - x) if "gamma" in p else attended), full


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 7)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = make(size, **options), draw(size, channels=16)
    expected, rows = reference(x, dict(module.named_parameters()), options)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])
    assert_maps(module, x, {"attention": rows})


@pytest.mark.parametrize("mutant", ["query - key", "place not scaled", "reshaped without transposing"])
def test_differs_from_known_mistakes(mutant: str):
    module, x = make((4, 5), heads=2), draw((4, 5), channels=16)
    wrong, _ = reference(x, dict(module.named_parameters()), {"heads": 2}, mutant)
    assert (module(x) - wrong).abs().max() > 1e-2


def test_without_positions_any_size_serves():
    assert make((4, 4), relative=False)(draw((3, 6), channels=16)).shape == (2, 16, 3, 6)


@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (64, 1), (128, 2), (256, 4), (512, 8), (1024, 8)])
def test_default_heads_have_20_key_channels_each(channels: int, heads: int):
    assert make_attention("augmented_conv", channels, 4).heads == heads


def test_tables_start_at_the_papers_scale():
    """N(0, 1/d), of shape (2L - 1, d)."""
    tables = dict(make_attention("augmented_conv", 256, (32, 64), pool=True).named_parameters(recurse=False))
    assert tables["row_table"].shape == (31, 32)
    assert tables["column_table"].shape == (63, 32)
    assert 0.9 < tables["column_table"].std() * 32**0.5 < 1.1

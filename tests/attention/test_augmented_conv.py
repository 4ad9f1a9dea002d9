"""Attention-augmented convolution against its equations, one query at a time, in float64."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

FORMS = [
    pytest.param({"heads": 2}, id="two-heads"),
    pytest.param({"heads": 2, "value_ratio": 1.0, "key_ratio": 0.25}, id="attention-only"),
    pytest.param({"heads": 4, "relative": False}, id="no-positions"),
    pytest.param({"heads": 2, "pool": True}, id="pooled"),
    pytest.param({"gain": "none"}, id="no-gain"),
]
SIZES = [(4, 4), (5, 3), (2, 7)]


def make(size: tuple[int, int], channels: int = 16, dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("augmented_conv", channels, size, 0.4, dtype, **options)


def reference_rows(q: Tensor, k: Tensor, p: Mapping[str, Tensor], mutant: str = "") -> Tensor:
    """Softmax rows of one head, query by query: q, k (B, d, H, W) -> (B, N, N), both cells row by row."""
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


def reference_heads(x: Tensor, p: Mapping[str, Tensor], options: dict, mutant: str = "") -> tuple[Tensor, Tensor]:
    """Rows (B, h, N, N) and values (B, h, N, dv/h)."""
    channels = x.shape[1]
    heads, keys = options.get("heads", 1), round(channels * options.get("key_ratio", 0.5))
    values = round(channels * options.get("value_ratio", 0.25))
    seen = F.avg_pool2d(x, 2) if options.get("pool") else x
    qkv = torch.einsum("oc,bchw->bohw", p["qkv.weight"][:, :, 0, 0], seen) + p["qkv.bias"][:, None, None]
    q, k, v = qkv[:, :keys], qkv[:, keys : 2 * keys], qkv[:, 2 * keys :]
    d, e = keys // heads, values // heads
    each = [slice(h * d, h * d + d) for h in range(heads)]
    rows = torch.stack([reference_rows(q[:, part], k[:, part], p, mutant) for part in each], 1)
    value = torch.stack([v[:, h * e : h * e + e].flatten(2).mT for h in range(heads)], 1)
    return rows, value


def reference(x: Tensor, p: Mapping[str, Tensor], options: dict, mutant: str = "") -> Tensor:
    rows, value = reference_heads(x, p, options, mutant)
    shape = F.avg_pool2d(x, 2).shape[2:] if options.get("pool") else x.shape[2:]
    heads = [(rows[:, h] @ value[:, h]).mT for h in range(rows.shape[1])]  # (B, dv/h, N) each
    if mutant == "reshaped without transposing":
        attended = (rows @ value).reshape(len(x), -1, *shape)
    else:
        attended = torch.cat(heads, 1).unflatten(2, shape)
    attended = torch.einsum("oc,bchw->bohw", p["out.weight"][:, :, 0, 0], attended) + p["out.bias"][:, None, None]
    if options.get("pool"):
        attended = F.interpolate(attended, x.shape[2:], mode="bilinear", align_corners=False)
    if "conv.weight" in p:
        attended = torch.cat([F.conv2d(x, p["conv.weight"], p["conv.bias"], padding=1), attended], 1)
    return x + p["gamma"] * (attended - x) if "gamma" in p else attended


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    expected = reference(x, dict(module.named_parameters()), options)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize("mutant", ["query - key", "place not scaled", "reshaped without transposing"])
def test_differs_from_known_mistakes(mutant: str):
    """The module differs from wrong re-implementations."""
    module, options = make((4, 5), heads=2), {"heads": 2}
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    wrong = reference(x, dict(module.named_parameters()), options, mutant)
    assert (module(x) - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(4, 4), (7, 5)])
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_matrix(options: dict, size: tuple[int, int]):
    """Rows belong to their cell, head and image; pooled rows are bilinear mixtures."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    full, _ = reference_heads(x, dict(module.named_parameters()), options)  # (B, h, N, M)
    shape = F.avg_pool2d(x, 2).shape[2:] if options.get("pool") else x.shape[2:]
    if options.get("pool"):
        full = F.interpolate(full.transpose(2, 3).flatten(1, 2).unflatten(2, shape), size, mode="bilinear")
        full = full.flatten(2).unflatten(1, (-1, shape.numel())).transpose(2, 3)  # (B, h, N, M) of every query cell
    points = torch.tensor([[0, 0], [size[0] - 1, 0], [1, size[1] - 1], [2, 3]])
    rows = module.attention_rows(x, points)["attention"]
    torch.testing.assert_close(
        rows, full[:, :, points @ torch.tensor([size[1], 1])].unflatten(3, shape), atol=1e-10, rtol=0
    )
    moved = module.attention_rows(x, torch.stack([points, points.flip(0)]))["attention"]
    torch.testing.assert_close(moved[1], rows[1].flip(1), atol=1e-12, rtol=0)


def test_without_positions_any_size_serves():
    """Without relative tables any map size works."""
    module = make((4, 4), relative=False)
    assert module(torch.randn(1, 16, 3, 6, dtype=torch.float64)).shape == (1, 16, 3, 6)


@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (64, 1), (128, 2), (256, 4), (512, 8), (1024, 8)])
def test_default_heads(channels: int, heads: int):
    """The default is the most heads, up to 8, with at least 20 key channels each."""
    assert make_attention("augmented_conv", channels, 4).heads == heads


def test_tables_start_as_the_paper_says():
    """Tables are N(0, 1/d), of shape (2L - 1, d)."""
    module = make_attention("augmented_conv", 256, (32, 64), pool=True)
    tables = dict(module.named_parameters(recurse=False))
    assert tables["row_table"].shape == (31, 32)
    assert tables["column_table"].shape == (63, 32)
    assert 0.9 < tables["column_table"].std() * 32**0.5 < 1.1

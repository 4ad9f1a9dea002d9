"""The transformer's encoder block against its equations, one query at a time."""

from collections.abc import Mapping
from functools import partial
from math import cos, pi, sin

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, layer_normed, randomized
from torch import Tensor

from sagan.attention import make_attention

FORMS = [
    {},
    {"heads": 4, "gelu": "exact"},
    {"position": "sincos", "ratio": 1},
    {"position": "none", "heads": 2},
    {"gain": "none"},
]
make = partial(randomized, "transformer", 16, std=0.4)


def activation(t: Tensor, form: str) -> Tensor:
    if form == "exact":
        return t * (1 + torch.erf(t / 2**0.5)) / 2
    return t * (1 + torch.tanh((2 / pi) ** 0.5 * (t + 0.044715 * t**3))) / 2


def positions_of(x: Tensor, p: Mapping[str, Tensor], form: str) -> Tensor:
    """P (C, H, W)."""
    _, channels, height, width = x.shape
    if form == "learned":
        return F.interpolate(p["position_table"], (height, width), mode="bicubic", align_corners=False)[0]
    table = torch.zeros(channels, height, width, dtype=x.dtype)
    for i in range(channels // 4 if form == "sincos" else 0):
        frequency = 10000 ** (-i / (channels // 4))
        for y in range(height):
            for c in range(width):
                angles = [sin(frequency * c), cos(frequency * c), sin(frequency * y), cos(frequency * y)]
                table[i :: channels // 4, y, c] = torch.tensor(angles, dtype=x.dtype)
    return table


def reference(
    x: Tensor, p: Mapping[str, Tensor], heads: int = 1, position: str = "learned", gelu: str = "tanh", **_
) -> tuple[Tensor, dict[str, Tensor]]:
    """y, and the rows of all cells (B, h, N, H, W)."""
    t = (x + positions_of(x, p, position)).flatten(2).mT
    seen = layer_normed(t, "norm", p)
    parts = ((seen @ p[f"{part}.weight"].T + p[f"{part}.bias"]).chunk(heads, 2) for part in ("query", "key", "value"))
    rows, outputs = [], []
    for q, k, v in zip(*parts, strict=True):
        each = [((q[:, i, None] * k).sum(2) / q.shape[2] ** 0.5).softmax(1) for i in range(q.shape[1])]
        rows.append(torch.stack(each, 1))
        outputs.append(rows[-1] @ v)
    t = t + torch.cat(outputs, 2) @ p["out.weight"].T + p["out.bias"]
    hidden = layer_normed(t, "mlp.0", p) @ p["mlp.1.weight"].T + p["mlp.1.bias"]
    y = (t + activation(hidden, gelu) @ p["mlp.3.weight"].T + p["mlp.3.bias"]).mT.reshape(x.shape)
    return x + p.get("gamma", 1.0) * (y - x), {"attention": torch.stack(rows, 1).unflatten(3, x.shape[2:])}


@pytest.mark.parametrize("built", [None, (3, 4)])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 7)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int], built: tuple[int, int] | None):
    assert_equations(make(built or size, **options), draw(size, channels=16), reference, options)


def test_initialization_is_the_papers():
    """Weights are Xavier-uniform; positions N(0, 0.02), biases of the MLP N(0, 1e-6)."""
    p = dict(make_attention("transformer", 64, 16).named_parameters())
    assert p["position_table"].shape == (1, 64, 16, 16)
    assert 0.0195 < p["position_table"].std() < 0.0205
    for name in ("query", "key", "value", "out"):
        assert 0.95 < p[f"{name}.weight"].abs().max() / (6 / 128) ** 0.5 <= 1
        assert not p[f"{name}.bias"].any()
    for name in ("mlp.1", "mlp.3"):
        assert 0.95 < p[f"{name}.weight"].abs().max() / (6 / 320) ** 0.5 <= 1
        assert 0.7e-6 < p[f"{name}.bias"].std() < 1.3e-6
    assert sum(v.numel() for v in p.values()) == 12 * 64**2 + (9 + 4) * 64 + 64 * 16**2 + 1

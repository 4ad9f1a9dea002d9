"""The transformer's encoder block against its equations, one query at a time, in float64."""

from collections.abc import Mapping
from math import cos, erf, pi, sin, tanh

import pytest
import torch
import torch.nn.functional as F
from forms import assert_same_with_gradients, randomized
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention

FORMS = [
    pytest.param({}, id="defaults"),
    pytest.param({"heads": 4, "gelu": "exact"}, id="four-heads-exact-gelu"),
    pytest.param({"position": "sincos", "ratio": 1}, id="sincos"),
    pytest.param({"position": "none", "heads": 2}, id="no-positions"),
    pytest.param({"gain": "none"}, id="paper"),
]
SIZES = [(4, 4), (5, 3), (2, 7)]


def make(size: tuple[int, int], channels: int = 16, dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("transformer", channels, size, 0.4, dtype, **options)


def normed(t: Tensor, p: Mapping[str, Tensor], name: str, eps: float = 1e-6) -> Tensor:
    centered = t - t.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(t: Tensor, form: str) -> Tensor:
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


def reference(x: Tensor, p: Mapping[str, Tensor], options: dict, mutant: str = "") -> tuple[Tensor, Tensor]:
    """y, and the rows of all cells (B, h, N, N)."""
    heads, eps = options.get("heads", 1), 1e-5 if mutant == "eps 1e-5" else 1e-6
    t = (x + positions_of(x, p, options.get("position", "learned"))).flatten(2).mT
    seen = t if mutant == "no first norm" else normed(t, p, "norm", eps)
    q, k, v = (seen @ p[f"{part}.weight"].T + p[f"{part}.bias"] for part in ("query", "key", "value"))
    d = q.shape[2] // heads
    rows, outputs = [], []
    for h in range(heads):
        part = slice(h * d, h * d + d)
        each = [((q[:, i, None, part] * k[..., part]).sum(2) / d**0.5).softmax(1) for i in range(q.shape[1])]
        rows.append(torch.stack(each, 1))
        outputs.append(rows[-1] @ v[..., part])
    t = t + torch.cat(outputs, 2) @ p["out.weight"].T + p["out.bias"]
    hidden = gelu(normed(t, p, "mlp.0", eps) @ p["mlp.1.weight"].T + p["mlp.1.bias"], options.get("gelu", "tanh"))
    y = (t + hidden @ p["mlp.3.weight"].T + p["mlp.3.bias"]).mT.reshape(x.shape)
    return x + p.get("gamma", 1.0) * (y - x), torch.stack(rows, 1)


@pytest.mark.parametrize("built", [None, (3, 4)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int], built: tuple[int, int] | None):
    """Values and gradients equal the equations."""
    module = make(built or size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    expected, _ = reference(x, dict(module.named_parameters()), options)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize("mutant", ["eps 1e-5", "no first norm", "exact GELU"])
def test_differs_from_known_mistakes(mutant: str):
    """The module differs from wrong re-implementations."""
    module = make((4, 5))
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    p = dict(module.named_parameters())
    options = {"gelu": "exact"} if mutant == "exact GELU" else {}
    wrong, _ = reference(x, p, options, mutant)
    assert (module(x) - wrong).abs().max() > 1e-6


@pytest.mark.parametrize("size", [(4, 4), (7, 5)])
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_matrix(options: dict, size: tuple[int, int]):
    """Rows belong to their cell, head and image, and include positions."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    points = torch.tensor([[0, 0], [size[0] - 1, 0], [1, size[1] - 1], [2, 3]])
    _, full = reference(x, dict(module.named_parameters()), options)
    rows = module.attention_rows(x, points)["attention"]
    expected = full[:, :, points @ torch.tensor([size[1], 1])].unflatten(3, size)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-10)
    moved = module.attention_rows(x, torch.stack([points, points.flip(0)]))["attention"]
    torch.testing.assert_close(moved[1], rows[1].flip(1), rtol=0, atol=1e-12)


def test_gelu_is_that_of_the_words():
    """The words tanh and exact name the right activations."""
    for word, one in (("tanh", (1 + tanh((2 / pi) ** 0.5 * 1.044715)) / 2), ("exact", (1 + erf(0.5**0.5)) / 2)):
        (activation,) = [m for m in make((2, 2), gelu=word).modules() if isinstance(m, nn.GELU)]
        assert activation(torch.ones((), dtype=torch.float64)).item() == pytest.approx(one, abs=1e-12)


@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (64, 1), (96, 1), (128, 2), (200, 2), (512, 8)])
def test_default_heads(channels: int, heads: int):
    """The default is the largest divisor of C up to C/64."""
    assert make_attention("transformer", channels, 4).heads == heads


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

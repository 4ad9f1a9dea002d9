"""Self-attention against the paper's equations, one query at a time (tests/reference.py)."""

import pytest
import torch
from forms import assert_maps, assert_same_with_gradients, draw, randomized
from reference import attention_maps, self_attention
from torch import Tensor

from sagan.attention import AttentionModule, make_attention
from sagan.attention.functional import dot_product_attention

NAMES = ("query", "key", "value", "out")
FORMS = [
    pytest.param({}, id="released"),
    pytest.param({"pool": False, "value_ratio": 0.125}, id="paper"),
    pytest.param({"bias": True}, id="biases"),
    pytest.param({"pool": False, "bias": True, "value_ratio": 1.0}, id="wide"),
    pytest.param({"query_ratio": 0.5, "value_ratio": 0.25}, id="query-wider-than-value"),
]
SIZES = [(6, 6), (7, 5), (4, 9)]


def make(size: tuple[int, int], channels: int = 16, dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("self_attention", channels, size, 0.5, dtype, **options)


def parts(module: AttentionModule) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the reference takes: weights, biases, gamma."""
    state = dict(module.named_parameters())
    biases = {name: state[f"{name}.bias"] for name in NAMES if f"{name}.bias" in state}
    return {name: state[f"{name}.weight"] for name in NAMES}, biases, state["gamma"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x, pool = make(size, **options), draw(size, channels=16), options.get("pool", True)
    weights, biases, gamma = parts(module)
    expected = self_attention(x, weights, biases, gamma, pool)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])
    height, width = (size[0] // 2, size[1] // 2) if pool else size
    maps = attention_maps(x, weights, biases, pool).unflatten(2, (height, width))
    assert_maps(module, x, {"attention": maps[:, None]})


def test_widths_are_the_released_ones():
    """Query and key are C/8 wide, value C/2, without biases."""
    module = make_attention("self_attention", 64, 12)
    assert {name: tuple(p.shape[:2]) for name, p in module.named_parameters()} == {
        "gamma": (), "query.weight": (8, 64), "key.weight": (8, 64), "value.weight": (32, 64), "out.weight": (64, 32),
    }  # fmt: skip


@pytest.mark.parametrize("widths", [(2, 8), (8, 8), (8, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_fused_equals_explicit(widths: tuple[int, int], dtype: torch.dtype, tolerance: float):
    """Padding for the fused kernel changes no value and no gradient."""
    torch.manual_seed(0)
    query_width, value_width = widths
    query = torch.randn(2, 3, 20, query_width, dtype=dtype, requires_grad=True)
    key = torch.randn(2, 3, 7, query_width, dtype=dtype, requires_grad=True)
    value = torch.randn(2, 3, 7, value_width, dtype=dtype, requires_grad=True)
    found = dot_product_attention(query, key, value, scale=0.6)
    expected = (0.6 * query @ key.transpose(2, 3)).softmax(dim=3) @ value
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad((y * weight).sum(), (query, key, value)) for y in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)

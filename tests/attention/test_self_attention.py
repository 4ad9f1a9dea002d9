"""Self-attention against the paper's equations, one query at a time (tests/reference.py)."""

import pytest
import torch
from forms import assert_same_with_gradients, randomized
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


def maps_of(module: AttentionModule, x: Tensor, pool: bool) -> Tensor:
    """All rows by the reference: (B, N, H', W')."""
    weights, biases, _ = parts(module)
    height, width = (x.shape[2] // 2, x.shape[3] // 2) if pool else x.shape[2:]
    return attention_maps(x, weights, biases, pool).unflatten(2, (height, width))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal eqs. 1-3."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    expected = self_attention(x, *parts(module), pool=options.get("pool", True))
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


def test_widths_are_the_released_ones():
    """Query and key are C/8 wide, value C/2, without biases."""
    module = make_attention("self_attention", 64, 12)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "gamma": (),
        "query.weight": (8, 64, 1, 1),
        "key.weight": (8, 64, 1, 1),
        "value.weight": (32, 64, 1, 1),
        "out.weight": (64, 32, 1, 1),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_map(options: dict, size: tuple[int, int]):
    """Rows are those of the requested cells and sum to 1."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    height, width = size
    points = torch.tensor([[0, 0], [height - 1, 0], [1, width - 1], [2, 3]])
    rows = module.attention_rows(x, points)["attention"]  # (B, 1, k, H', W')
    full = maps_of(module, x, options.get("pool", True))
    torch.testing.assert_close(rows[:, 0], full[:, points[:, 0] * width + points[:, 1]], rtol=0, atol=1e-10)
    torch.testing.assert_close(rows.sum(dim=(3, 4)), torch.ones(2, 1, 4, dtype=torch.float64), rtol=0, atol=1e-10)


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
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((found * weight).sum(), (query, key, value))
    for gradient, explicit in zip(
        gradients, torch.autograd.grad((expected * weight).sum(), (query, key, value)), strict=True
    ):
        torch.testing.assert_close(gradient, explicit, rtol=tolerance, atol=tolerance)

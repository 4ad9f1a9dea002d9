"""Self-attention against the paper's equations, one query at a time (tests/reference.py)."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_equations, assert_same_with_gradients, draw, randomized
from reference import attention_maps, self_attention
from torch import Tensor

from sagan.attention import make_attention
from sagan.attention.functional import dot_product_attention

NAMES = ("query", "key", "value", "out")
FORMS = [
    {},
    {"pool": False, "value_ratio": 0.125},  # the paper's
    {"bias": True},
    {"pool": False, "bias": True, "value_ratio": 1.0},
    {"query_ratio": 0.5, "value_ratio": 0.25},
]


def reference(x: Tensor, state: Mapping[str, Tensor], pool: bool = True, **_) -> tuple[Tensor, dict[str, Tensor]]:
    weights = {name: state[f"{name}.weight"] for name in NAMES}
    biases = {name: state[f"{name}.bias"] for name in NAMES if f"{name}.bias" in state}
    size = [side // 2 if pool else side for side in x.shape[2:]]
    maps = attention_maps(x, weights, biases, pool).unflatten(2, size)
    return self_attention(x, weights, biases, state["gamma"], pool), {"attention": maps[:, None]}


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (4, 9)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module = randomized("self_attention", 16, size, 0.5, **options)
    assert_equations(module, draw(size, channels=16), reference, options)


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
    shapes = [(2, 3, 20, widths[0]), (2, 3, 7, widths[0]), (2, 3, 7, widths[1])]
    query, key, value = inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    expected = (0.6 * query @ key.mT).softmax(dim=3) @ value
    assert_same_with_gradients(dot_product_attention(*inputs, scale=0.6), expected, inputs, tolerance)


def test_half_precision_on_a_cpu_computes_in_float32():
    """Also under autocast: the result is that of float32, rounded once."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 1, 20, 8).bfloat16() for _ in range(3)]
    expected = dot_product_attention(*(x.float() for x in inputs)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dot_product_attention(*inputs), expected)

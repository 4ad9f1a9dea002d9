"""Self-attention against the paper's equations, one query at a time (tests/reference.py)."""

import pytest
import torch
import torch.nn.functional as F
from forms import Sizes, randomised
from reference import attention_maps, self_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.attention import ATTENTION, AttentionModule, make_attention, record_attention
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
    return randomised("self_attention", channels, size, 0.5, dtype, **options)


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
    """Breaks when a projection, the pooling, the softmax's axis or scale, or the residual is not that of eqs. 1-3."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    expected = self_attention(x, *parts(module), pool=options.get("pool", True))
    weight = torch.randn_like(expected)
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for gradient, by_loop in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, by_loop, rtol=1e-9, atol=1e-9)


def test_widths_are_the_released_ones():
    """Breaks when query and key are not C/8 wide, value not C/2, or a bias appears: 1.25·C² + 1 parameters."""
    module = make_attention("self_attention", 64, 12)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "gamma": (),
        "query.weight": (8, 64, 1, 1),
        "key.weight": (8, 64, 1, 1),
        "value.weight": (32, 64, 1, 1),
        "out.weight": (64, 32, 1, 1),
    }


def test_is_the_identity_at_first():
    """Breaks when gamma does not start at 0."""
    x = torch.randn(2, 64, 12, 12)
    assert torch.equal(make_attention("self_attention", 64, 12)(x), x)


def test_second_derivatives_equal_the_equations():
    """Breaks when the module cannot be differentiated twice under the MATH backend, as R1 does."""
    module = make((4, 6))
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64, requires_grad=True)

    def penalty_gradients(y: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(module.parameters()))

    with sdpa_kernel(SDPBackend.MATH):
        found = penalty_gradients(module(x))
    expected = penalty_gradients(self_attention(x, *parts(module), pool=True))
    for gradient, by_loop in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, by_loop, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_map(options: dict, size: tuple[int, int]):
    """Breaks when a row belongs to another cell than asked for, or is not a distribution over the keys."""
    module = make(size, **options)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    height, width = size
    points = torch.tensor([[0, 0], [height - 1, 0], [1, width - 1], [2, 3]])
    rows = module.attention_rows(x, points)["attention"]  # (B, 1, k, H', W')
    full = maps_of(module, x, options.get("pool", True))
    torch.testing.assert_close(rows[:, 0], full[:, points[:, 0] * width + points[:, 1]], rtol=0, atol=1e-10)
    torch.testing.assert_close(rows.sum(dim=(3, 4)), torch.ones(2, 1, 4, dtype=torch.float64), rtol=0, atol=1e-10)


def test_attention_rows_take_points_per_sample():
    """Breaks when points (B, k, 2) are read for another sample than their own."""
    module = make((6, 5))
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    points = torch.tensor([[[0, 1], [5, 4]], [[3, 2], [2, 0]]])
    rows = module.attention_rows(x, points)["attention"]
    for sample in range(2):
        alone = module.attention_rows(x[sample : sample + 1], points[sample])["attention"]
        torch.testing.assert_close(rows[sample : sample + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("widths", [(2, 8), (8, 8), (8, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_fused_equals_explicit(widths: tuple[int, int], dtype: torch.dtype, tolerance: float):
    """Breaks when padding, scale or the kept channels of the fused path are wrong; values and gradients."""
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


@pytest.mark.parametrize("pool", [True, False])
def test_rows_and_forward_never_hold_all_pairs(pool: bool):
    """Breaks when k rows cost more than O(k·N), or no fused kernel is chosen and the N×M weights are materialised."""
    module = make((64, 64), dtype=torch.float32, pool=pool)
    x = torch.randn(1, 16, 64, 64, requires_grad=True)
    queries, keys = 64 * 64, 64 * 64 // (4 if pool else 1)
    with Sizes() as rows, torch.no_grad():
        module.attention_rows(x, torch.tensor([[0, 0], [63, 63], [5, 9]]))
    assert rows.elements <= 16 * queries
    with Sizes() as forward:
        module(x).sum().backward()
    assert forward.elements < queries * keys // 4
    with Sizes() as recording, torch.no_grad(), record_attention(module, torch.tensor([[0.5, 0.5]])):
        module(x)
    assert recording.elements <= 16 * queries


def test_autocast_keeps_the_values():
    """Breaks when the bfloat16 path loses the residual or the scale."""
    module = make((8, 8), dtype=torch.float32)
    x = torch.randn(2, 16, 8, 8)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), record_attention(module) as maps:
        found = module(x)
    assert F.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.999
    torch.testing.assert_close(maps[""].weights.sum(dim=(3, 4)), torch.ones(2, 1, 64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_every_mechanism_builds_with_its_defaults(name: str):
    """Breaks when a mechanism's defaults do not build at 64 channels on a 12×12 map, or change the shape."""
    x = torch.randn(2, 64, 12, 12)
    assert make_attention(name, 64, 12)(x).shape == x.shape


def test_mistakes_name_what_is_known():
    """Breaks when a misspelt name or option, or a map too small, gives no message that says what would be right."""
    with pytest.raises(ValueError, match=r"self_atention.*known:.*self_attention"):
        make_attention("self_atention", 64, 12)
    with pytest.raises(ValueError, match=r"poool.*known:.*pool.*value_ratio"):
        make_attention("self_attention", 64, 12, poool=True)
    with pytest.raises(ValueError, match="4 channels"):
        make_attention("self_attention", 4, 12)
    with pytest.raises(ValueError, match="too small"):
        make_attention("self_attention", 64, 1)

"""Double attention against the paper's equations, one cell and one descriptor at a time."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention, record_attention

CHANNELS = 8
SIZES = [(4, 4), (5, 3), (1, 6)]
FORMS = [
    pytest.param({}, id="defaults"),
    pytest.param({"value_ratio": 0.5, "key_ratio": 0.4}, id="m-4-n-3"),
    pytest.param({"value_ratio": 0.1, "key_ratio": 1.5}, id="m-1-n-12"),
    pytest.param({"gain": "none", "bias": False}, id="no-gain-no-bias"),
]
each_form = pytest.mark.parametrize("options", FORMS)
POINTS = torch.tensor([[0, 0], [0, 2]])


def make(size: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("double_attention", CHANNELS, size, 0.5, dtype, **options)


def draw(size: tuple[int, int] = (4, 4), batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHANNELS, *size, generator=generator, dtype=torch.float64).requires_grad_()


def projected(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A 1×1 convolution as a product: (B, C, N) -> (B, C', N)."""
    found = torch.einsum("oc,bcn->bon", state[f"{name}.weight"][:, :, 0, 0], x)
    return found + state[f"{name}.bias"][:, None] if f"{name}.bias" in state else found


def normalized(x: Tensor, dim: int) -> Tensor:
    return x.exp() / x.exp().sum(dim=dim, keepdim=True)


def reference(state: Mapping[str, Tensor], x: Tensor, gathered_over: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """y, the composed rows (B, N, N), the gather maps (B, n, N). `gathered_over`: their softmax's axis, 2 for cells."""
    cells = x.flatten(2)  # (B, C, N)
    value, key, query = (projected(state, name, cells) for name in ("value", "key", "query"))
    gather, mix = normalized(key, gathered_over), normalized(query, 1)
    outputs, rows = [], []
    for b in range(x.shape[0]):
        descriptors = [
            sum(weight * value[b, :, cell] for cell, weight in enumerate(map_of_k)) for map_of_k in gather[b]
        ]
        for cell in range(cells.shape[2]):
            outputs.append(sum(mix[b, k, cell] * descriptor for k, descriptor in enumerate(descriptors)))
            rows.append(sum(mix[b, k, cell] * map_of_k for k, map_of_k in enumerate(gather[b])))
    z = torch.stack(outputs).unflatten(0, (x.shape[0], -1)).transpose(1, 2)  # (B, m, N)
    change = projected(state, "out", z).view_as(x)
    return x + state.get("gamma", 1) * change, torch.stack(rows).unflatten(0, (x.shape[0], -1)), gather


@pytest.mark.parametrize("size", SIZES)
@each_form
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module, x = make(size, **options), draw(size)
    expected, _, _ = reference(dict(module.named_parameters()), x)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize("size", SIZES)
@each_form
def test_attention_rows_equal_the_full_map(options: dict, size: tuple[int, int]):
    """Rows and gather maps equal the equations; rows sum to 1."""
    module, x = make(size, **options), draw(size)
    maps = module.attention_rows(x, POINTS)
    _, rows, gather = reference(dict(module.named_parameters()), x)
    chosen = rows[:, POINTS[:, 0] * size[1] + POINTS[:, 1]]
    torch.testing.assert_close(maps["attention"][:, 0].flatten(2), chosen, rtol=0, atol=1e-10)
    torch.testing.assert_close(maps["gather"][:, :, 0].flatten(2), gather, rtol=0, atol=1e-10)
    ones = torch.ones(2, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(maps["attention"].sum(dim=(3, 4)), ones, rtol=0, atol=1e-12)


def test_widths_are_quarters():
    """m and n are C/4 by default, and at least 1."""
    module = make_attention("double_attention", 64, 12)
    shapes = {name: tuple(p.shape[:2]) for name, p in module.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "value.weight": (16, 64),
        "key.weight": (16, 64),
        "query.weight": (16, 64),
        "out.weight": (64, 16),
    }
    assert make_attention("double_attention", 2, 4).get_parameter("key.weight").shape[0] == 1
    assert make(key_ratio=0.45).get_parameter("key.weight").shape[0] == 3


def softmax_over_batch(module: AttentionModule, x: Tensor) -> Tensor:
    """A public mistake: softmax without an axis takes the first of a 3-D tensor, the batch."""
    state, cells = dict(module.named_parameters()), x.flatten(2)
    value, key, query = (projected(state, name, cells) for name in ("value", "key", "query"))
    z = value @ normalized(key, 0).transpose(1, 2) @ normalized(query, 0)
    return x + 0.7 * projected(state, "out", z).view_as(x)


def test_known_wrong_forms_are_other_functions():
    """The module differs from wrong re-implementations."""
    module, x = make(), draw()
    assert (module(x) - softmax_over_batch(module, x)).abs().max() > 0.1
    over_descriptors, _, _ = reference(dict(module.named_parameters()), x, gathered_over=1)
    assert (module(x) - over_descriptors).abs().max() > 0.1


def test_a_sample_does_not_see_its_batch():
    """An image does not depend on its batch."""
    module, x = make(), draw(batch=3)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=0, atol=1e-12)


def test_half_precision_keeps_small_weights():
    """Gather maps of large maps stay in float32 under autocast."""
    module, x = make(dtype=torch.float32), draw((96, 96)).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16), record_attention(module) as maps:
        module(x)
    gather = maps["/gather"].weights
    assert gather.dtype == torch.float32
    torch.testing.assert_close(gather.sum(dim=(3, 4)), torch.ones(2, 2, 1), rtol=0, atol=1e-5)

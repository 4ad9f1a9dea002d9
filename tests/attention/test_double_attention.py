"""Double attention against the paper's equations, one cell and one descriptor at a time."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from forms import assert_equations, draw, projected, randomized
from torch import Tensor

from sagan.attention import make_attention, record_attention

FORMS = [
    {},
    {"value_ratio": 0.5, "key_ratio": 0.4},
    {"value_ratio": 0.1, "key_ratio": 1.5},
    {"gain": "none", "bias": False},
]
make = partial(randomized, "double_attention", 8, std=0.5)


def reference(x: Tensor, state: Mapping[str, Tensor], **_) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the full maps."""
    value, key, query = (projected(x, name, state).flatten(2) for name in ("value", "key", "query"))
    gather, mix = key.softmax(2), query.softmax(1)
    outputs, rows = [], []
    for b in range(x.shape[0]):
        descriptors = [sum(weight * value[b, :, i] for i, weight in enumerate(weights)) for weights in gather[b]]
        for cell in range(value.shape[2]):
            outputs.append(sum(mix[b, k, cell] * descriptor for k, descriptor in enumerate(descriptors)))
            rows.append(sum(mix[b, k, cell] * weights for k, weights in enumerate(gather[b])))
    z = torch.stack(outputs).unflatten(0, (x.shape[0], -1)).transpose(1, 2)  # (B, m, N)
    change = projected(z.unflatten(2, x.shape[2:]), "out", state)
    composed = torch.stack(rows).unflatten(0, (x.shape[0], 1, -1)).unflatten(3, x.shape[2:])
    maps = {"attention": composed, "gather": gather.unflatten(2, x.shape[2:])[:, :, None]}
    return x + state.get("gamma", 1) * change, maps


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 6)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(size, **options), draw(size, channels=8), reference, options)


def test_widths_are_quarters():
    """m and n are C/4 by default, and at least 1."""
    module = make_attention("double_attention", 64, 12)
    shapes = {name: tuple(p.shape[:2]) for name, p in module.named_parameters() if name.endswith("weight")}
    assert shapes == {f"{name}.weight": (16, 64) for name in ("value", "key", "query")} | {"out.weight": (64, 16)}
    assert make_attention("double_attention", 2, 4).get_parameter("key.weight").shape[0] == 1
    assert make(4, key_ratio=0.45).get_parameter("key.weight").shape[0] == 3


def test_half_precision_keeps_small_weights():
    """Gather maps of large maps stay in float32 under autocast."""
    module, x = make(4, dtype=torch.float32), draw((96, 96), channels=8).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16), record_attention(module) as maps:
        module(x)
    gather = maps["/gather"].weights
    assert gather.dtype == torch.float32
    torch.testing.assert_close(gather.sum(dim=(3, 4)), torch.ones(2, 2, 1), rtol=0, atol=1e-5)

"""Double attention against the paper's equations, one cell and one descriptor at a time."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_maps, assert_same_with_gradients, draw, projected, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention, record_attention

CHANNELS = 8
FORMS = [
    {},
    {"value_ratio": 0.5, "key_ratio": 0.4},
    {"value_ratio": 0.1, "key_ratio": 1.5},
    {"gain": "none", "bias": False},
]


def make(size: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    return randomized("double_attention", CHANNELS, size, 0.5, dtype, **options)


def reference(state: Mapping[str, Tensor], x: Tensor, gathered_over: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the full maps. `gathered_over`: the axis of the gather maps' softmax, 2 for cells."""
    value, key, query = (projected(x, name, state).flatten(2) for name in ("value", "key", "query"))
    gather, mix = key.softmax(gathered_over), query.softmax(1)
    outputs, rows = [], []
    for b in range(x.shape[0]):
        descriptors = [sum(weight * value[b, :, i] for i, weight in enumerate(weights)) for weights in gather[b]]
        for cell in range(value.shape[2]):
            outputs.append(sum(mix[b, k, cell] * descriptor for k, descriptor in enumerate(descriptors)))
            rows.append(sum(mix[b, k, cell] * weights for k, weights in enumerate(gather[b])))
    z = torch.stack(outputs).unflatten(0, (x.shape[0], -1)).transpose(1, 2)  # (B, m, N)
    change = projected(z.unflatten(2, x.shape[2:]), "out", state)
    composed = torch.stack(rows).unflatten(0, (x.shape[0], 1, -1)).unflatten(3, x.shape[2:])
    return x + state.get("gamma", 1) * change, {
        "attention": composed,
        "gather": gather.unflatten(2, x.shape[2:])[:, :, None],
    }


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 6)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = make(size, **options), draw(size, channels=CHANNELS)
    expected, maps = reference(dict(module.named_parameters()), x)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])
    assert_maps(module, x, maps)


def test_widths_are_quarters():
    """m and n are C/4 by default, and at least 1."""
    module = make_attention("double_attention", 64, 12)
    shapes = {name: tuple(p.shape[:2]) for name, p in module.named_parameters() if name.endswith("weight")}
    assert shapes == {f"{name}.weight": (16, 64) for name in ("value", "key", "query")} | {"out.weight": (64, 16)}
    assert make_attention("double_attention", 2, 4).get_parameter("key.weight").shape[0] == 1
    assert make(key_ratio=0.45).get_parameter("key.weight").shape[0] == 3


@pytest.mark.parametrize("gathered_over", [0, 1])
def test_differs_from_softmaxes_over_batch_and_descriptors(gathered_over: int):
    module, x = make(), draw((4, 4), channels=CHANNELS)
    wrong, _ = reference(dict(module.named_parameters()), x, gathered_over)
    assert (module(x) - wrong).abs().max() > 0.1


def test_half_precision_keeps_small_weights():
    """Gather maps of large maps stay in float32 under autocast."""
    module, x = make(dtype=torch.float32), draw((96, 96), channels=CHANNELS).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16), record_attention(module) as maps:
        module(x)
    gather = maps["/gather"].weights
    assert gather.dtype == torch.float32
    torch.testing.assert_close(gather.sum(dim=(3, 4)), torch.ones(2, 2, 1), rtol=0, atol=1e-5)

"""Squeeze and excitation against the paper's equations, one channel at a time."""

import pytest
import torch
from forms import assert_maps, assert_same_with_gradients, draw, projected, randomized
from torch import Tensor

from sagan.attention import make_attention

FORMS = [{}, {"bias": False}, {"double": True}, {"reduction": 2}, {"gain": "none"}, {"gain": "none", "double": True}]


def squeeze_excitation(x: Tensor, state: dict[str, Tensor], options: dict) -> tuple[Tensor, Tensor]:
    """Eqs. 2 to 4, and the gain; the gates (B, C, 1, 1)."""
    z = torch.stack([channel.sum(dim=(1, 2)) / channel[0].numel() for channel in x.unbind(1)], 1)[..., None, None]
    hidden = projected(z, "squeeze", state).clamp(min=0)
    gate = (2 if options.get("double") else 1) / (1 + torch.exp(-projected(hidden, "excite", state)))
    y = x * gate
    return y if "gamma" not in state else (1 - state["gamma"]) * x + state["gamma"] * y, gate


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 1)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = randomized("squeeze_excitation", 12, 8, 0.7, **options), draw(size, 3, channels=12)
    state = dict(module.named_parameters())
    expected, gate = squeeze_excitation(x, state, options)
    assert_same_with_gradients(module(x), expected, [x, *state.values()])
    assert_maps(module, x, {"gate": gate.flatten(1)[:, None, None, None]})


@pytest.mark.parametrize(("channels", "width"), [(16, 4), (64, 4), (256, 16), (8, 4)])
def test_the_inner_width_is_a_sixteenth_and_at_least_4(channels: int, width: int):
    module = make_attention("squeeze_excitation", channels, 8)
    assert module.squeeze.weight.shape == (width, channels)
    assert module.excite.weight.shape == (channels, width)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 1


def test_a_doubled_gate_starts_near_one():
    torch.manual_seed(0)
    x = torch.randn(8, 64, 8, 8)
    for double, expected in ((False, 0.5), (True, 1.0)):
        y = make_attention("squeeze_excitation", 64, 8, double=double, gain="none")(x)
        assert abs((y.std() / x.std()).item() - expected) < 0.1

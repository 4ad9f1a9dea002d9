"""Squeeze and excitation against the paper's equations, one channel at a time."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_equations, draw, projected, randomized
from torch import Tensor

from sagan.attention import make_attention

FORMS = [{}, {"bias": False}, {"double": True}, {"reduction": 2}, {"gain": "none"}, {"gain": "none", "double": True}]


def reference(x: Tensor, state: Mapping[str, Tensor], double: bool = False, **_) -> tuple[Tensor, dict[str, Tensor]]:
    """Eqs. 2 to 4, and the gain; the gates."""
    z = torch.stack([channel.sum(dim=(1, 2)) / channel[0].numel() for channel in x.unbind(1)], 1)[..., None, None]
    hidden = projected(z, "squeeze", state).clamp(min=0)
    gate = (2 if double else 1) / (1 + torch.exp(-projected(hidden, "excite", state)))  # (B, C, 1, 1)
    return x + state.get("gamma", 1.0) * (x * gate - x), {"gate": gate.view(len(x), 1, 1, 1, -1)}


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 1)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module = randomized("squeeze_excitation", 12, 8, 0.7, **options)
    assert_equations(module, draw(size, 3, channels=12), reference, options)


@pytest.mark.parametrize(("name", "more"), [("squeeze_excitation", 0), ("cbam", 2 * 7 * 7)])
@pytest.mark.parametrize(("channels", "width"), [(16, 4), (64, 4), (256, 16), (8, 4)])
def test_the_inner_width_is_a_sixteenth_and_at_least_4(channels: int, width: int, name: str, more: int):
    module = make_attention(name, channels, 8)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 1 + more


def test_a_doubled_gate_starts_near_one():
    torch.manual_seed(0)
    x = torch.randn(8, 64, 8, 8)
    for double, expected in ((False, 0.5), (True, 1.0)):
        y = make_attention("squeeze_excitation", 64, 8, double=double, gain="none")(x)
        assert abs((y.std() / x.std()).item() - expected) < 0.1

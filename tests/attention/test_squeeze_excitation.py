"""Squeeze and excitation against the paper's equations, one channel at a time."""

import pytest
import torch
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

SIZES = [(4, 6), (7, 5), (1, 1)]
FORMS = [{}, {"bias": False}, {"double": True}, {"reduction": 2}, {"gain": "none"}, {"gain": "none", "double": True}]


def make(channels: int = 12, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("squeeze_excitation", channels, 8, 0.7, gamma=0.6, **options)


def gates(x: Tensor, state: dict[str, Tensor], factor: float = 1.0) -> Tensor:
    """Eqs. 2 and 3: (B, C)."""
    images = []
    for image in x:
        z = torch.stack([channel.sum() / channel.numel() for channel in image])
        hidden = [row @ z + bias for row, bias in zip(state["squeeze.weight"], biases(state, "squeeze"), strict=True)]
        hidden = torch.stack([value.clamp(min=0) for value in hidden])
        s = [row @ hidden + bias for row, bias in zip(state["excite.weight"], biases(state, "excite"), strict=True)]
        images.append(torch.stack([factor / (1 + torch.exp(-value)) for value in s]))
    return torch.stack(images)


def biases(state: dict[str, Tensor], layer: str) -> Tensor:
    return state.get(f"{layer}.bias", torch.zeros(len(state[f"{layer}.weight"]), dtype=torch.float64))


def squeeze_excitation(x: Tensor, state: dict[str, Tensor], options: dict) -> Tensor:
    """Eq. 4, and the gain."""
    gated = x * gates(x, state, 2.0 if options.get("double") else 1.0)[:, :, None, None]
    return gated if "gamma" not in state else (1 - state["gamma"]) * x + state["gamma"] * gated


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module, x = make(**options), torch.randn(3, 12, *size, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_parameters())
    expected = squeeze_excitation(x, state, options)
    assert_same_with_gradients(module(x), expected, [x, *state.values()])


@pytest.mark.parametrize("options", [{}, {"double": True}])
def test_the_map_is_the_gate(options: dict):
    """The map is the factor of each channel."""
    module, x = make(**options), torch.randn(2, 12, 5, 4, dtype=torch.float64)
    gate = module.attention_rows(x, torch.tensor([[0, 0], [4, 3]]))["gate"]
    expected = gates(x, dict(module.named_parameters()), 2.0 if options else 1.0)
    torch.testing.assert_close(gate, expected[:, None, None, None], rtol=0, atol=1e-12)


def test_images_of_a_batch_are_gated_apart():
    """A gate does not depend on other images."""
    module, x = make(), torch.randn(3, 12, 4, 4, dtype=torch.float64)
    apart = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "width"), [(16, 4), (64, 4), (256, 16), (8, 4)])
def test_widths(channels: int, width: int):
    """The inner width is C/16, at least 4."""
    module = make_attention("squeeze_excitation", channels, 8)
    assert module.squeeze.weight.shape == (width, channels)
    assert module.excite.weight.shape == (channels, width)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 1


def test_a_doubled_gate_starts_near_one():
    """`double` preserves the scale of features at initialization."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 8, 8)
    for double, expected in ((False, 0.5), (True, 1.0)):
        y = make_attention("squeeze_excitation", 64, 8, double=double, gain="none")(x)
        assert abs((y.std() / x.std()).item() - expected) < 0.1

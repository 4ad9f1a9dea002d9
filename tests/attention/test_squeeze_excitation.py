"""Squeeze and excitation against the paper's equations, one channel at a time."""

import pytest
import torch
from forms import randomised
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

SIZES = [(4, 6), (7, 5), (1, 1)]
FORMS = [{}, {"bias": False}, {"double": True}, {"reduction": 2}, {"gain": "none"}, {"gain": "none", "double": True}]


def make(channels: int = 12, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomised("squeeze_excitation", channels, 8, 0.7, gamma=0.6, **options)


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
    """Breaks when the mean, a layer, an activation, the factor of 2 or the gain is wrong; values and gradients."""
    module, x = make(**options), torch.randn(3, 12, *size, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_parameters())
    expected = squeeze_excitation(x, state, options)
    weight = torch.randn_like(expected)
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [x, *state.values()]
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for gradient, by_loop in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, by_loop, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"double": True}])
def test_the_map_is_the_gate(options: dict):
    """Breaks when the map is not the factor that channels are multiplied with."""
    module, x = make(**options), torch.randn(2, 12, 5, 4, dtype=torch.float64)
    gate = module.attention_rows(x, torch.tensor([[0, 0], [4, 3]]))["gate"]
    expected = gates(x, dict(module.named_parameters()), 2.0 if options else 1.0)
    torch.testing.assert_close(gate, expected[:, None, None, None], rtol=0, atol=1e-12)


def test_images_of_a_batch_are_gated_apart():
    """Breaks when a gate depends on the other images of the batch."""
    module, x = make(), torch.randn(3, 12, 4, 4, dtype=torch.float64)
    apart = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "width"), [(16, 4), (64, 4), (256, 16), (8, 4)])
def test_widths(channels: int, width: int):
    """Breaks when the inner width is not C/16, at least 4."""
    module = make_attention("squeeze_excitation", channels, 8)
    assert module.squeeze.weight.shape == (width, channels)
    assert module.excite.weight.shape == (channels, width)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 1


def test_a_doubled_gate_starts_near_one():
    """Breaks when `double` does not keep the size of features at first, which the paper's gate halves."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 8, 8)
    for double, expected in ((False, 0.5), (True, 1.0)):
        y = make_attention("squeeze_excitation", 64, 8, double=double, gain="none")(x)
        assert abs((y.std() / x.std()).item() - expected) < 0.1


def test_mistakes_are_named():
    """Breaks when a reduction that leaves no width gives no clear line."""
    with pytest.raises(ValueError, match="squeeze_excitation: reduction is 0, it must be at least 1"):
        make_attention("squeeze_excitation", 64, 8, reduction=0)

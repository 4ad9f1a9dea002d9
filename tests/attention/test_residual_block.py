"""The control of the paper's table 1 against its equation, and its cost against that of self-attention."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_same_with_gradients, randomized
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sagan.attention import AttentionModule, make_attention, record_attention

SIZES = [(6, 6), (7, 5), (1, 4)]
FORMS = [
    pytest.param({}, id="default"),
    pytest.param({"kernel": 1, "bias": True}, id="1x1"),
    pytest.param({"kernel": 5, "equal": "parameters"}, id="5x5"),
    pytest.param({"gain": "none"}, id="without-gain"),
]


def make(size: tuple[int, int], **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("residual_block", 16, size, 0.5, **options)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, C, H, W) convolved with weight (D, C, k, k), zeros outside, one tap after the other."""
    height, width = x.shape[2:]
    padded = F.pad(x, [weight.shape[2] // 2] * 4)
    out = torch.zeros(len(x), len(weight), height, width, dtype=x.dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            out = out + torch.einsum("bchw,dc->bdhw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return out if bias is None else out + bias[:, None, None]


def reference(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    h = convolved(x.clamp(min=0), state["conv1.weight"], state.get("conv1.bias"))
    h = convolved(h.clamp(min=0), state["conv2.weight"], state.get("conv2.bias"))
    return x + state.get("gamma", torch.ones((), dtype=x.dtype)) * h


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equation(options: dict, size: tuple[int, int]) -> None:
    """Values and gradients equal the equation."""
    module = make(size, **options)
    state = dict(module.named_parameters())
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    expected = reference(x, state)
    assert_same_with_gradients(module(x), expected, [x, *state.values()])


def macs(module: AttentionModule, channels: int, size: int) -> float:
    """Multiply-adds of a forward of one image, as torch counts them."""
    x = torch.empty(1, channels, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module.to("meta")(x)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "size"), [(64, 16), (32, 16), (64, 12), (256, 32), (128, 64)])
def test_costs_what_self_attention_costs(channels: int, size: int, kernel: int) -> None:
    """No other width comes closer to self-attention's multiply-adds, or parameters."""
    attention = make_attention("self_attention", channels, size)
    equal = make_attention("residual_block", channels, size, kernel=kernel, equal="parameters")
    sizes = [sum(p.numel() for p in module.parameters()) for module in (equal, attention)]
    assert abs(sizes[0] - sizes[1]) <= channels * kernel**2
    block = make_attention("residual_block", channels, size, kernel=kernel)
    cost = macs(block, channels, size)
    per_channel = cost / len(block.get_parameter("conv1.weight"))
    assert abs(cost - macs(attention, channels, size)) <= per_channel / 2


def test_narrow_networks_have_one_too_and_it_has_no_maps() -> None:
    for channels in (1, 7, 16):
        module, x = make_attention("residual_block", channels, 8), torch.randn(2, channels, 8, 8)
        with record_attention(module) as maps:
            assert torch.equal(module(x), x)
        assert maps == module.attention_rows(x, torch.tensor([[0, 0]])) == {}

"""The control of the paper's table 1 against its equation, and its cost against that of self-attention."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, randomized
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sagan.attention import AttentionModule, make_attention

FORMS = [{}, {"kernel": 1, "bias": True}, {"kernel": 5, "equal": "parameters"}, {"gain": "none"}]


def reference(x: Tensor, state: Mapping[str, Tensor], **_) -> tuple[Tensor, dict[str, Tensor]]:
    h = x
    for layer in ("conv1", "conv2"):
        h = F.conv2d(h.clamp(min=0), state[f"{layer}.weight"], state.get(f"{layer}.bias"), padding="same")
    return x + state.get("gamma", 1.0) * h, {}


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (1, 4)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equation(options: dict, size: tuple[int, int]) -> None:
    module = randomized("residual_block", 16, size, 0.5, **options)
    assert_equations(module, draw(size, channels=16), reference, options)


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


@pytest.mark.parametrize("channels", [1, 7])
def test_narrow_networks_have_one_too(channels: int) -> None:
    x = torch.randn(2, channels, 8, 8)
    assert torch.equal(make_attention("residual_block", channels, 8)(x), x)

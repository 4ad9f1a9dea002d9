"""Selective kernels against the paper's equations."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, normed, projected, randomized
from torch import Tensor

from sagan.attention import make_attention
from sagan.models.blocks import initialize

FORMS = [{}, {"paths": 3}, {"groups": 1}, {"groups": 4, "relu": False}, {"gain": "none"}, {"norm": "batch"}]
FORMS += [{"norm": "group", "gain": "none"}]
make = partial(randomized, "selective_kernel", 12, std=0.5, gamma=0.6)


def reference(
    x: Tensor, state: Mapping[str, Tensor], paths: int = 2, norm: str = "none", relu: bool = True, **_
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eqs. 1 to 6 and the gain; the shares."""
    features = []  # every U_i, (B, C, H, W)
    for i in range(paths):
        weight, bias = state[f"convs.{i}.weight"], state.get(f"convs.{i}.bias")
        u = F.conv2d(x, weight, bias, 1, i + 1, i + 1, x.shape[1] // weight.shape[1])  # i + 1: padding and dilation
        u = normed(u, f"norms.{i}", state, norm, 12)
        features.append(u.clamp(min=0) if relu else u)
    s = torch.stack(features).sum(0).mean(dim=(2, 3), keepdim=True)
    z = normed(projected(s, "squeeze", state), "squeeze_norm", state, norm, 1).clamp(min=0)
    powers = torch.exp(projected(z, "select", state)).view(len(x), paths, -1)
    shares = powers / powers.sum(1, keepdim=True)  # (B, paths, C)
    chosen = torch.zeros_like(x)
    for i, feature in enumerate(features):
        chosen = chosen + shares[:, i, :, None, None] * feature
    return x + state.get("gamma", 1.0) * (chosen - x), {"kernels": shares[:, :, None, None]}


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(8, **options), draw(size, 3, channels=12), reference, options, 1e-8)


@pytest.mark.parametrize(
    ("channels", "groups", "used"), [(64, 32, 32), (48, 32, 24), (16, 32, 16), (12, 8, 6), (7, 4, 1)]
)
def test_widths(channels: int, groups: int, used: int):
    """Groups are the largest allowed divisor; z is max(C/16, 32) wide."""
    module = make_attention("selective_kernel", channels, 8, groups=groups)
    assert [conv.groups for conv in module.convs] == [used, used]
    assert module.squeeze.weight.shape == (32, channels)
    assert make_attention("selective_kernel", 1024, 8).squeeze.out_features == 64


def test_initialization_preserves_the_scale_of_features():
    torch.manual_seed(0)
    x, module = torch.randn(4, 64, 12, 12), make_attention("selective_kernel", 64, 12, "conv", relu=False)
    initialize(module, "xavier")
    assert 0.5 < module(x).square().mean() < 2


def test_batch_norm_of_a_single_image_is_refused():
    module, x = make(8, norm="batch"), draw((4, 4), 1, channels=12)
    with pytest.raises(ValueError, match="at least 2 images"):
        module(x)
    assert module.eval()(x).shape == x.shape

"""Selective kernels against the paper's equations, with loops over taps, groups and channels."""

import pytest
import torch
import torch.nn.functional as F
from forms import assert_maps, assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention
from sagan.models.blocks import initialize

SIZES = [(4, 6), (5, 3)]
FORMS = [{}, {"paths": 3}, {"groups": 1}, {"groups": 4, "relu": False}, {"gain": "none"}, {"norm": "batch"}]
FORMS += [{"norm": "group", "gain": "none"}]


def make(channels: int = 12, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("selective_kernel", channels, 8, 0.5, gamma=0.6, **options)


def dilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    """A 3×3 convolution with zeros outside, by its nine taps: a tap is a shift of the map."""
    height, width = x.shape[2:]
    parts = []
    for own, taps in zip(F.pad(x, [dilation] * 4).chunk(groups, 1), weight.chunk(groups), strict=True):
        shifts = [(i, j, own[:, :, i * dilation :, j * dilation :]) for i in range(3) for j in range(3)]
        terms = [torch.einsum("bchw,dc->bdhw", s[:, :, :height, :width], taps[:, :, i, j]) for i, j, s in shifts]
        parts.append(torch.stack(terms).sum(0))
    y = torch.cat(parts, dim=1)
    return y if bias is None else y + bias[:, None, None]


def normalized(x: Tensor, dims: tuple[int, ...], weight: Tensor, bias: Tensor) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    x = centered / (centered.square().mean(dims, keepdim=True) + 1e-5).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def features_of(x: Tensor, state: dict[str, Tensor], options: dict) -> list[Tensor]:
    """Every U_i, (B, C, H, W)."""
    features, norm = [], options.get("norm", "none")
    for i in range(options.get("paths", 2)):
        weight = state[f"convs.{i}.weight"]
        u = dilated(x, weight, state.get(f"convs.{i}.bias"), i + 1, x.shape[1] // weight.shape[1])
        if norm != "none":  # 12 channels: groups of one
            dims = (0, 2, 3) if norm == "batch" else (2, 3)
            u = normalized(u, dims, state[f"norms.{i}.weight"], state[f"norms.{i}.bias"])
        features.append(u.clamp(min=0) if options.get("relu", True) else u)
    return features


def shares_of(features: list[Tensor], state: dict[str, Tensor], options: dict, over: int = 1) -> Tensor:
    """Eqs. 1 to 5: (B, paths, C). `over`: the dimension of the softmax."""
    norm = options.get("norm", "none")
    s = sum(features).mean(dim=(2, 3))  # type: ignore[union-attr]
    z = torch.stack([state["squeeze.weight"] @ image for image in s])[..., None, None]
    if norm != "none":
        z = normalized(z, (0,) if norm == "batch" else (1,), state["squeeze_norm.weight"], state["squeeze_norm.bias"])
    z = z.clamp(min=0).flatten(1)
    logits = torch.stack([state["select.weight"] @ image for image in z]).reshape(len(z), len(features), -1)
    powers = torch.exp(logits)
    return powers / powers.sum(over, keepdim=True)


def selective_kernel(x: Tensor, state: dict[str, Tensor], options: dict, over: int = 1) -> tuple[Tensor, Tensor]:
    """Eq. 6 and the gain; the shares."""
    features = features_of(x, state, options)
    shares = shares_of(features, state, options, over)
    chosen = torch.zeros_like(x)
    for i, feature in enumerate(features):
        chosen = chosen + shares[:, i, :, None, None] * feature
    return (chosen if "gamma" not in state else (1 - state["gamma"]) * x + state["gamma"] * chosen), shares


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = make(**options), torch.randn(3, 12, *size, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_parameters())
    expected, shares = selective_kernel(x, state, options)
    assert_same_with_gradients(module(x), expected, [x, *state.values()], 1e-8)
    assert_maps(module, x, {"kernels": shares[:, :, None, None]})


@pytest.mark.parametrize("over", [0, 2])
def test_the_softmax_is_over_paths(over: int):
    module, x = make(gain="none"), torch.randn(3, 12, 4, 6, dtype=torch.float64)
    assert (module(x) - selective_kernel(x, dict(module.named_parameters()), {}, over)[0]).abs().max() > 0.1


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
    module, x = make(norm="batch"), torch.randn(1, 12, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 2 images"):
        module(x)
    assert module.eval()(x).shape == x.shape

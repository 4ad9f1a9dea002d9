"""Selective kernels against the paper's equations, with loops over taps, groups and channels."""

import pytest
import torch
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention
from sagan.models.blocks import initialize

SIZES = [(4, 6), (5, 3)]
FORMS = [
    {},
    {"paths": 3},
    {"groups": 1},
    {"groups": 4, "relu": False},
    {"gain": "none"},
    {"norm": "batch"},
    {"norm": "group", "gain": "none"},
]


def make(channels: int = 12, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("selective_kernel", channels, 8, 0.5, gamma=0.6, **options)


def dilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    """A 3×3 convolution with zeros outside, by its nine taps: a tap is a shift of the map."""
    height, width = x.shape[2:]
    inputs, outputs = x.shape[1] // groups, len(weight) // groups
    padded = torch.zeros(*x.shape[:2], height + 2 * dilation, width + 2 * dilation, dtype=x.dtype)
    padded[:, :, dilation : dilation + height, dilation : dilation + width] = x
    found = []
    for group in range(groups):
        own, taps = padded[:, group * inputs : (group + 1) * inputs], weight[group * outputs : (group + 1) * outputs]
        y = torch.zeros(len(x), outputs, height, width, dtype=x.dtype)
        for i in range(3):
            for j in range(3):
                shifted = own[:, :, i * dilation :, j * dilation :][:, :, :height, :width]
                y = y + torch.einsum("bchw,dc->bdhw", shifted, taps[:, :, i, j])
        found.append(y)
    y = torch.cat(found, dim=1)
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


def selective_kernel(x: Tensor, state: dict[str, Tensor], options: dict, over: int = 1) -> Tensor:
    """Eq. 6, and the gain."""
    features = features_of(x, state, options)
    shares = shares_of(features, state, options, over)
    chosen = torch.zeros_like(x)
    for i, feature in enumerate(features):
        chosen = chosen + shares[:, i, :, None, None] * feature
    return chosen if "gamma" not in state else (1 - state["gamma"]) * x + state["gamma"] * chosen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module, x = make(**options), torch.randn(3, 12, *size, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_parameters())
    expected = selective_kernel(x, state, options)
    assert_same_with_gradients(module(x), expected, [x, *state.values()], 1e-8)


@pytest.mark.parametrize("over", [0, 2])
def test_the_softmax_is_over_paths(over: int):
    """The softmax runs over the paths, not over batch or channels."""
    module, x = make(gain="none"), torch.randn(3, 12, 4, 6, dtype=torch.float64)
    assert (module(x) - selective_kernel(x, dict(module.named_parameters()), {}, over)).abs().max() > 0.1


def test_the_map_is_the_share_of_every_kernel():
    """The map is the share of each kernel in each channel."""
    module, x = make(paths=3), torch.randn(2, 12, 5, 4, dtype=torch.float64)
    state, options = dict(module.named_parameters()), {"paths": 3}
    found = module.attention_rows(x, torch.tensor([[0, 0]]))["kernels"]
    expected = shares_of(features_of(x, state, options), state, options)
    torch.testing.assert_close(found, expected[:, :, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "groups", "used"), [(64, 32, 32), (48, 32, 24), (16, 32, 16), (12, 8, 6), (7, 4, 1)]
)
def test_widths(channels: int, groups: int, used: int):
    """Groups are the largest allowed divisor; z is max(C/16, 32) wide."""
    module = make_attention("selective_kernel", channels, 8, groups=groups)
    assert [conv.groups for conv in module.convs] == [used, used]
    assert module.squeeze.weight.shape == (32, channels)
    assert make_attention("selective_kernel", 1024, 8).squeeze.out_features == 64


def test_a_network_leaves_the_size_of_features():
    """Initialization preserves the scale of features in grouped convolutions."""
    torch.manual_seed(0)
    x, module = torch.randn(4, 64, 12, 12), make_attention("selective_kernel", 64, 12, "conv", relu=False)
    initialize(module, "xavier")
    assert 0.5 < module(x).square().mean() < 2


def test_a_single_image_and_batch_norm():
    """Batch norm over a single image in training is refused."""
    module, x = make(norm="batch"), torch.randn(1, 12, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="selective_kernel: norm batch needs at least 2 images in training, got 1"):
        module(x)
    assert module.eval()(x).shape == x.shape

"""CBAM against the paper's equations, with loops over channels and cells."""

import pytest
import torch
import torch.nn.functional as F
from forms import assert_maps, assert_same_with_gradients, draw, projected, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

FORMS = [{}, {"kernel": 3}, {"gain": "none"}, {"reduction": 2}, {"norm": "batch"}, {"norm": "group"}]


def make(**options) -> AttentionModule:
    return randomized("cbam", 12, 8, 0.7, gamma=0.6, **options)


def channel_gate(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Eq. 2: (B, C)."""

    def mlp(pooled: Tensor) -> Tensor:
        return projected(projected(pooled[..., None], "squeeze", state).clamp(min=0), "excite", state)[..., 0]

    means = torch.stack([channel.sum(dim=(1, 2)) / channel[0].numel() for channel in x.unbind(1)], 1)
    largest = torch.stack([channel.flatten(1).sort(1).values[:, -1] for channel in x.unbind(1)], 1)
    return 1 / (1 + torch.exp(-mlp(means) - mlp(largest)))


def spatial_gate(x: Tensor, state: dict[str, Tensor], norm: str = "none", order: tuple[int, int] = (0, 1)) -> Tensor:
    """Eq. 3: (B, 1, H, W). `order`: of the planes that the convolution sees, max and mean."""
    kernel = state["spatial.weight"][0]  # (2, k, k)
    side, (height, width) = kernel.shape[1], x.shape[2:]
    planes = [x.sort(dim=1).values[:, -1], x.sum(dim=1) / x.shape[1]]
    planes = F.pad(torch.stack([planes[i] for i in order], dim=1), [side // 2] * 4)
    logits = torch.zeros(len(x), height, width, dtype=x.dtype)
    for i in range(side):
        for j in range(side):
            shifted = planes[:, :, i : i + height, j : j + width]
            logits = logits + torch.einsum("bphw,p->bhw", shifted, kernel[:, i, j])
    if norm != "none":
        dims = (0, 1, 2) if norm == "batch" else (1, 2)
        centered = logits - logits.mean(dims, keepdim=True)
        logits = centered / (centered.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        logits = logits * state["norm.weight"] + state["norm.bias"]
    return (1 / (1 + torch.exp(-logits)))[:, None]


def cbam(x: Tensor, state: dict[str, Tensor], norm: str = "none", order: tuple[int, int] = (0, 1), **_):
    """Eq. 1 and the gain; the maps."""
    channel = channel_gate(x, state)
    gated = x * channel[:, :, None, None]
    spatial = spatial_gate(gated, state, norm, order)
    y, gamma = gated * spatial, state.get("gamma", 1)
    return (1 - gamma) * x + gamma * y, {"channel": channel[:, None, None, None], "spatial": spatial[:, None]}


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = make(**options), draw(size, channels=12)
    state = dict(module.named_parameters())
    expected, maps = cbam(x, state, **options)
    assert_same_with_gradients(module(x), expected, [x, *state.values()])
    assert_maps(module, x, maps)


def test_the_planes_are_max_then_mean():
    module, x = make(gain="none"), draw((4, 6), channels=12)
    assert (module(x) - cbam(x, dict(module.named_parameters()), order=(1, 0))[0]).abs().max() > 0.1


def test_statistics_move_in_training_only():
    module, x = make(norm="batch"), draw((5, 4), channels=12)
    before = module.norm.running_mean.clone()
    module(x)
    assert not torch.equal(module.norm.running_mean, before)
    module.eval()
    torch.testing.assert_close(module(x[:1]), module(x)[:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "width"), [(16, 4), (256, 16)])
def test_the_inner_width_is_a_sixteenth_and_at_least_4(channels: int, width: int):
    module = make_attention("cbam", channels, 8)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 98 + 1

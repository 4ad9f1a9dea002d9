"""CBAM against the paper's equations, with loops over channels and cells."""

import pytest
import torch
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

SIZES = [(4, 6), (5, 3)]
FORMS = [{}, {"kernel": 3}, {"gain": "none"}, {"reduction": 2}, {"norm": "batch"}, {"norm": "group"}]


def make(**options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("cbam", 12, 8, 0.7, gamma=0.6, **options)


def channel_gate(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Eq. 2: (B, C)."""

    def mlp(pooled: Tensor) -> Tensor:
        hidden = (state["squeeze.weight"] @ pooled + state["squeeze.bias"]).clamp(min=0)
        return state["excite.weight"] @ hidden + state["excite.bias"]

    logits = []
    for image in x:
        mean = torch.stack([channel.sum() / channel.numel() for channel in image])
        largest = torch.stack([channel.flatten().sort().values[-1] for channel in image])
        logits.append(mlp(mean) + mlp(largest))
    return 1 / (1 + torch.exp(-torch.stack(logits)))


def spatial_gate(x: Tensor, state: dict[str, Tensor], norm: str = "none", order: tuple[int, int] = (0, 1)) -> Tensor:
    """Eq. 3: (B, 1, H, W). `order`: of the planes that the convolution sees, max and mean."""
    kernel = state["spatial.weight"][0]  # (2, k, k)
    side, (height, width) = kernel.shape[1], x.shape[2:]
    planes = [x.sort(dim=1).values[:, -1], x.sum(dim=1) / x.shape[1]]
    planes = torch.stack([planes[i] for i in order], dim=1)  # (B, 2, H, W)
    logits = torch.zeros(len(x), height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            for i in range(side):
                for j in range(side):
                    r, c = row + i - side // 2, column + j - side // 2
                    if 0 <= r < height and 0 <= c < width:
                        term = torch.zeros_like(logits)
                        term[:, row, column] = planes[:, :, r, c] @ kernel[:, i, j]
                        logits = logits + term
    if norm != "none":
        dims = (0, 1, 2) if norm == "batch" else (1, 2)
        centered = logits - logits.mean(dims, keepdim=True)
        logits = centered / (centered.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        logits = logits * state["norm.weight"] + state["norm.bias"]
    return (1 / (1 + torch.exp(-logits)))[:, None]


def cbam(x: Tensor, state: dict[str, Tensor], norm: str = "none", order: tuple[int, int] = (0, 1)) -> Tensor:
    """Eq. 1, and the gain."""
    gated = x * channel_gate(x, state)[:, :, None, None]
    gated = gated * spatial_gate(gated, state, norm, order)
    return gated if "gamma" not in state else (1 - state["gamma"]) * x + state["gamma"] * gated


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module, x = make(**options), torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_parameters())
    expected = cbam(x, state, options.get("norm", "none"))
    assert_same_with_gradients(module(x), expected, [x, *state.values()])


def test_the_planes_are_max_then_mean():
    """The spatial convolution sees max, then mean."""
    module, x = make(gain="none"), torch.randn(2, 12, 4, 6, dtype=torch.float64)
    state = dict(module.named_parameters())
    assert (module(x) - cbam(x, state, order=(1, 0))).abs().max() > 0.1


def test_the_maps_are_the_gates():
    """The maps are the factors of channels and cells."""
    module, x = make(), torch.randn(2, 12, 5, 4, dtype=torch.float64)
    state = dict(module.named_parameters())
    rows = module.attention_rows(x, torch.tensor([[0, 0], [4, 3]]))
    channel = channel_gate(x, state)
    torch.testing.assert_close(rows["channel"], channel[:, None, None, None], rtol=0, atol=1e-12)
    spatial = spatial_gate(x * channel[:, :, None, None], state)
    torch.testing.assert_close(rows["spatial"], spatial[:, None], rtol=0, atol=1e-12)


def test_statistics_move_in_training_only():
    """Batch norm updates its statistics in training and uses them in eval mode."""
    module, x = make(norm="batch"), torch.randn(2, 12, 5, 4, dtype=torch.float64)
    before = module.norm.running_mean.clone()
    module(x)
    assert not torch.equal(module.norm.running_mean, before)
    module.eval()
    torch.testing.assert_close(module(x[:1]), module(x)[:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "width"), [(16, 4), (256, 16)])
def test_widths(channels: int, width: int):
    """The inner width is C/16, at least 4."""
    module = make_attention("cbam", channels, 8)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * width + channels + width + 98 + 1

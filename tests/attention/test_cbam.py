"""CBAM against the paper's equations."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, normed, projected, randomized
from torch import Tensor

FORMS = [{}, {"kernel": 3}, {"gain": "none"}, {"reduction": 2}, {"norm": "batch"}, {"norm": "group"}]
make = partial(randomized, "cbam", 12, std=0.7, gamma=0.6)


def channel_gate(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Eq. 2: (B, C, 1, 1)."""

    def mlp(pooled: Tensor) -> Tensor:
        return projected(projected(pooled[:, :, None, None], "squeeze", state).clamp(min=0), "excite", state)

    means = torch.stack([channel.sum(dim=(1, 2)) / channel[0].numel() for channel in x.unbind(1)], 1)
    largest = torch.stack([channel.flatten(1).sort(1).values[:, -1] for channel in x.unbind(1)], 1)
    return 1 / (1 + torch.exp(-mlp(means) - mlp(largest)))


def spatial_gate(x: Tensor, state: Mapping[str, Tensor], norm: str) -> Tensor:
    """Eq. 3: (B, 1, H, W). The planes are max, then mean."""
    weight = state["spatial.weight"]
    planes = torch.stack([x.sort(dim=1).values[:, -1], x.sum(dim=1) / x.shape[1]], dim=1)
    logits = F.conv2d(planes, weight, padding=weight.shape[2] // 2)
    return 1 / (1 + torch.exp(-normed(logits, "norm", state, norm, 1)))


def reference(x: Tensor, state: Mapping[str, Tensor], norm: str = "none", **_) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1 and the gain; the maps."""
    channel = channel_gate(x, state)
    gated = x * channel
    spatial = spatial_gate(gated, state, norm)
    y = x + state.get("gamma", 1.0) * (gated * spatial - x)
    return y, {"channel": channel.view(len(x), 1, 1, 1, -1), "spatial": spatial[:, None]}


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(8, **options), draw(size, channels=12), reference, options)

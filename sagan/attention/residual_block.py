"""The control of Self-Attention Generative Adversarial Networks, table 1: no attention, a residual block of equal cost.

Zhang, Goodfellow, Metaxas, Odena. arXiv:1805.08318, ICML 2019. It separates the effect of attention from that of depth.
Differs from the paper: the width of the block is chosen here (the paper matches the number of parameters and gives no
layout); it has a gain γ, like self-attention.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, require

EQUAL = ("macs", "parameters")


class ResidualBlock(AttentionModule):
    """y = x + γ·W₂ relu(W₁ relu(x)), W₁ from C to w channels, W₂ back, both `kernel` × `kernel`; γ = 0 at first.

    w is the width, at least 1, at which the block is closest to `self_attention` with its defaults at C channels and
    `resolution`: `equal` "macs" in multiply-adds, "parameters" in parameters (as in the paper). It has no maps.

    Raises ValueError for an unknown `equal` and a kernel that is not odd.
    """

    def __init__(
        self,
        channels: int,
        resolution: int | tuple[int, int],
        *,
        equal: str = "macs",
        kernel: int = 3,
        bias: bool = False,
        gain: str = "scalar",
    ):
        super().__init__(channels, resolution, gain)
        require(equal in EQUAL, f"residual_block: equal is {equal!r}; known: {', '.join(EQUAL)}")
        require(kernel > 0 and kernel % 2 == 1, f"residual_block: kernel is {kernel}, it must be odd: 1, 3, 5")
        height, width = self.resolution
        weights = _weights_of_self_attention(channels)
        if equal == "macs":
            aimed_at = height * width * weights + _pairs_of_self_attention(height, width) * 2 * (channels // 2)
            per_channel = height * width * 2 * channels * kernel**2
        else:
            aimed_at, per_channel = weights, 2 * channels * kernel**2
        inner = max(1, round(aimed_at / per_channel))
        self.conv1 = nn.Conv2d(channels, inner, kernel, padding=kernel // 2, bias=bias)
        self.conv2 = nn.Conv2d(inner, channels, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x, self.conv2(F.relu(self.conv1(F.relu(x)))))


def _weights_of_self_attention(channels: int) -> int:
    """Weights of query and key (C/8 wide), value and out (C/2 wide)."""
    return 2 * channels * (channels // 8 + channels // 2)


def _pairs_of_self_attention(height: int, width: int) -> int:
    """Queries times the keys that remain after 2×2 pooling."""
    return height * width * (height // 2) * (width // 2)

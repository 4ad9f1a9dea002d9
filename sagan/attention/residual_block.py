"""Self-Attention Generative Adversarial Networks. Zhang, Goodfellow, Metaxas, Odena. arXiv:1805.08318, ICML 2019.

The control of table 1: a residual block of equal cost instead of attention, to separate the effect of attention from
that of depth. Differs from the paper: the width is chosen here (the paper matches the number of parameters and gives no
layout); the block has a gain γ, like self-attention.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require


class ResidualBlock(AttentionModule):
    """y = x + γ·W₂ relu(W₁ relu(x)), W₁ from C to w channels, W₂ back, both `kernel` × `kernel`; γ = 0 at first.

    w is the width, at least 1, at which the block is closest to `self_attention` with its defaults at C channels and
    `resolution`: `equal` "macs" in multiply-adds, "parameters" in parameters (as in the paper). It has no maps.
    """

    def __init__(
        self, channels: int, resolution: Size, *, equal: str = "macs", kernel: int = 3, bias: bool = False,
        gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(equal in ("macs", "parameters"), f"residual_block: equal is {equal!r}; known: macs, parameters")
        require(kernel > 0 and kernel % 2 == 1, f"residual_block: kernel is {kernel}, it must be odd: 1, 3, 5")
        height, width = self.resolution
        cost = 2 * channels * (channels // 8 + channels // 2)  # self-attention: query, key C/8 wide, value, out C/2
        per_channel = 2 * channels * kernel**2
        if equal == "macs":
            pairs = height * width * (height // 2) * (width // 2)  # of queries and pooled keys
            cost = height * width * cost + pairs * 2 * (channels // 2)
            per_channel *= height * width
        inner = max(1, round(cost / per_channel))
        self.conv1 = nn.Conv2d(channels, inner, kernel, padding=kernel // 2, bias=bias)
        self.conv2 = nn.Conv2d(inner, channels, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x, self.conv2(F.relu(self.conv1(F.relu(x)))))

"""The control of Self-Attention Generative Adversarial Networks, table 1: no attention, a residual block of equal cost.

Zhang, Goodfellow, Metaxas, Odena. arXiv:1805.08318, ICML 2019. It tells what attention adds from what depth adds.
Differs from the paper: the block's width is chosen here (the paper equals the numbers of parameters and gives no
layout); it enters with a gain γ, as self-attention does.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, require

EQUAL = ("macs", "parameters")


class ResidualBlock(AttentionModule):
    """y = x + γ·W₂ relu(W₁ relu(x)), W₁ from C to w channels, W₂ back, both `kernel` × `kernel`; γ = 0 at first.

    w is the width at which the block comes closest to `self_attention` with its defaults at C channels and
    `resolution`: `equal` "macs" in multiply-adds, "parameters" in parameters (the paper's); at least 1. It attends to
    nothing, so it has no maps.

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

    def attention_rows(self, x: Tensor, points: Tensor) -> dict[str, Tensor]:
        return {}

    def macs(self, height: int, width: int) -> int:
        return height * width * 2 * self.channels * self.conv1.out_channels * self.conv1.kernel_size[0] ** 2


def _weights_of_self_attention(channels: int) -> int:
    """Of query and key (C/8 wide), value and out (C/2 wide)."""
    return 2 * channels * (channels // 8 + channels // 2)


def _pairs_of_self_attention(height: int, width: int) -> int:
    """Queries times the keys that 2×2 pooling leaves."""
    return height * width * (height // 2) * (width // 2)

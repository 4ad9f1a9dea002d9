"""CBAM: Convolutional Block Attention Module. Woo, Park, Lee, Kweon. arXiv:1807.06521, ECCV 2018.

Differs from the paper: both gates together are scaled by γ, initially 0 (`gain="none"` is the paper's form); no norm
after the spatial convolution by default (the released code has batch norm with momentum 0.01; here 0.1 as everywhere);
the inner width is at least 4, because a single inactive ReLU would give every image the same gate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import make_norm
from sagan.layers.precision import at_least_float32


class CBAM(AttentionModule):
    """y = x + γ·(x″ - x), x′ = M_c(x)·x, x″ = M_s(x′)·x′ (eq. 1).

    M_c = σ(MLP(mean over the map) + MLP(max over the map)), one MLP C -> max(⌊C/reduction⌋, 4) -> C, biases (eq. 2).
    M_s = σ(norm(conv([max; mean] over the channels))), no bias (eq. 3; plane order as in the released code).
    `kernel`: side of that convolution. `norm`: "none", "batch" (released code) or "group". Maps, the same for all
    points: "channel", the gate of every channel, and "spatial", the gate of every cell.
    """

    map_kinds = {"channel": "channel gate", "spatial": "spatial gate"}

    def __init__(
        self, channels: int, resolution: Size, *, reduction: int = 16, kernel: int = 7, norm: str = "none",
        gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(reduction >= 1, f"cbam: reduction is {reduction}, it must be at least 1")
        require(kernel >= 1 and kernel % 2 == 1, f"cbam: kernel is {kernel}, it must be odd: 1, 3, 5, 7, …")
        self.squeeze = nn.Linear(channels, max(channels // reduction, 4))
        self.excite = nn.Linear(self.squeeze.out_features, channels)
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = make_norm(norm, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (B, 2, C)
        logits = self.excite(F.relu(self.squeeze(pooled))).sum(dim=1)
        channel = at_least_float32(logits).sigmoid()  # (B, C), M_c (eq. 2)
        gated = x * channel[:, :, None, None].to(x.dtype)  # x′
        planes = torch.cat([gated.amax(dim=1, keepdim=True), gated.mean(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        spatial = at_least_float32(self.norm(self.spatial(planes))).sigmoid()  # (B, 1, H, W), M_s (eq. 3)
        self.record("channel", lambda _: channel[:, None, None, None], x.shape)
        self.record("spatial", lambda _: spatial[:, None], x.shape)
        return self.blended(x, gated * spatial.to(x.dtype))

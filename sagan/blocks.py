"""Residual blocks of generator and discriminator (SAGAN's released code; Miyato & Koyama 2018, fig. 14).

`branch`: applied to the residual branch before the add. `conv`: in place of the 3×3 that is not resampled.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.layers import DownsampleConv2d, UpsampleConv2d, downsample, upsample
from sagan.normalization import Normalization


class GeneratorBlock(nn.Module):
    """(B, C, H, W) -> (B, D, 2H, 2W): norm-ReLU-up-conv3, norm-ReLU-conv3; shortcut up-conv1."""

    def __init__(self, norm1: Normalization, norm2: Normalization, in_channels: int, out_channels: int,
                 branch: nn.Module | None = None, conv: nn.Module | None = None):  # fmt: skip
        super().__init__()
        self.norm1, self.norm2 = norm1, norm2
        self.conv1 = UpsampleConv2d(in_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1) if conv is None else conv
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.branch = branch

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x, labels)))  # (B, D, 2H, 2W)
        h = self.conv2(F.relu(self.norm2(h, labels)))
        if self.branch is not None:
            h = self.branch(h)
        return h + upsample(self.shortcut(x))  # a 1×1 convolution commutes with nearest up-sampling


class DiscriminatorBlock(nn.Module):
    """(B, C, H, W) -> (B, D, H/2, W/2), without `down` (B, D, H, W): ReLU-conv3-ReLU-conv3-pool; shortcut pool-conv1.

    `stem`: no first ReLU (the input is an image). The shortcut is the identity without `down` at equal width.
    `relu_shortcut`: it sees relu(x), as where ReLU works in place.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        down: bool = True,
        stem: bool = False,
        relu_shortcut: bool = False,
        branch: nn.Module | None = None,
        conv: nn.Module | None = None,
    ):
        super().__init__()
        self.down, self.stem, self.relu_shortcut = down, stem, relu_shortcut
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1) if conv is None else conv
        if down:
            self.conv2: nn.Conv2d = DownsampleConv2d(out_channels, out_channels)
        else:
            self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if down or in_channels != out_channels else nn.Identity()
        )
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.stem else F.relu(x)
        shortcut = h if self.relu_shortcut else x
        h = self.conv2(F.relu(self.conv1(h)))  # (B, D, H/2, W/2)
        if self.branch is not None:
            h = self.branch(h)
        if self.down:
            shortcut = downsample(shortcut)  # a 1×1 convolution commutes with average pooling
        return h + self.shortcut(shortcut)

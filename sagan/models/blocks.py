"""Residual blocks of generator and discriminator (SAGAN's released code; Miyato & Koyama 2018, fig. 14).

`branch`: applied to the residual branch before the addition. `conv`: replaces the 3×3 convolution without resampling.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention
from sagan.config.schema import NetworkSettings
from sagan.layers.normalization import ClassEmbedding, Normalization
from sagan.layers.resampling import (
    BilinearConv2d,
    DownsampleConv2d,
    UpsampleConv2d,
    downsample,
    upsample,
    upsample_bilinear,
)
from sagan.layers.spectral_norm import Projection
from sagan.utils.errors import UserError


class GeneratorBlock(nn.Module):
    """(B, C, H, W) -> (B, D, 2H, 2W): norm-ReLU-up-conv3, norm-ReLU-conv3; shortcut up-conv1.

    `bilinear`: interpolate between cells instead of repeating them.
    """

    def __init__(
        self, norm1: Normalization, norm2: Normalization, in_channels: int, out_channels: int,
        branch: nn.Module | None = None, conv: nn.Module | None = None, bilinear: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.norm1, self.norm2, self.bilinear = norm1, norm2, bilinear
        self.conv1 = (BilinearConv2d if bilinear else UpsampleConv2d)(in_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1) if conv is None else conv
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.branch = branch

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x, labels)))  # (B, D, 2H, 2W)
        h = self.conv2(F.relu(self.norm2(h, labels)))
        if self.branch is not None:
            h = self.branch(h)
        enlarge = upsample_bilinear if self.bilinear else upsample
        return h + enlarge(self.shortcut(x))  # a 1×1 convolution commutes with both


class DiscriminatorBlock(nn.Module):
    """(B, C, H, W) -> (B, D, H/2, W/2), without `down` (B, D, H, W): ReLU-conv3-ReLU-conv3-pool; shortcut pool-conv1.

    `stem`: no first ReLU (the input is an image). The shortcut is the identity without `down` at equal width.
    `relu_shortcut`: its input is relu(x), as in code with in-place ReLU. `hidden`: channels between the convolutions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, down: bool = True, stem: bool = False, relu_shortcut: bool = False,
        branch: nn.Module | None = None, conv: nn.Module | None = None, hidden: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.down, self.stem, self.relu_shortcut = down, stem, relu_shortcut
        hidden = hidden or out_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1) if conv is None else conv
        plain = nn.Conv2d(hidden, out_channels, 3, padding=1) if not down else None
        self.conv2 = plain or DownsampleConv2d(hidden, out_channels)
        same = not down and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
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


PLACES = ("branch", "conv", "after")


def placed_attention(
    settings: NetworkSettings, network: str, size: int, place: str, channels: int
) -> AttentionModule | None:
    """The mechanism that `settings` place here in the block that outputs size × size, or None.

    In a discriminator block the replaced convolution comes before the map is halved.
    """
    at = settings.attention.get(size)
    if at is None or at.place != place:
        return None
    try:
        seen = 2 * size if (network, place) == ("discriminator", "conv") else size
        return make_attention(at.name, channels, seen, place, **at.options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{network}.attention.{size}: {error}") from None


def initialize(network: nn.Module, scheme: str) -> None:
    """Initialize convolutions, linear layers and class embeddings ("xavier" uniform or "orthogonal"); biases are 0.

    Then every attention mechanism sets the values that its paper prescribes.
    """
    draw = {"xavier": nn.init.xavier_uniform_, "orthogonal": nn.init.orthogonal_}[scheme]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Projection | ClassEmbedding):
            draw(module.weight)
            if not isinstance(module, Projection | ClassEmbedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, AttentionModule):
            module.reset_parameters()

"""Discriminator of SAGAN (arXiv:1805.08318, section 4): trunk, head, and the networks of its front-end."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.config.schema import CoarseToFineSettings, DiscriminatorSettings, ZoomSettings, discriminator_downs
from sagan.layers.spectral_norm import Projection
from sagan.models.blocks import PLACES, DiscriminatorBlock, placed_attention
from sagan.models.checkpointing import checkpoint_activations
from sagan.models.frontends import CoarseToFine, DiscriminatorOutput, FrontEnd, Proposal, Zoom
from sagan.utils.errors import UserError


class Trunk(nn.Module):
    """Images (B, C, R, R) -> features (B, C, h, w): residual blocks, the first `downs` of which halve the map.

    `widths`: output channels of the blocks. Attention stands where the settings name the resolution of a halved map.
    `activation_checkpointing`: blocks and attention store only their inputs for backward.
    """

    activation_checkpointing = False

    def __init__(
        self, settings: DiscriminatorSettings, resolution: int, widths: list[int], downs: int, image_channels: int
    ):
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleDict()
        for i, (width, next_width) in enumerate(pairwise([image_channels, *widths])):
            size, down = resolution >> (i + 1), i < downs
            branch, conv, after = (
                placed_attention(settings, "discriminator", size, place, next_width) if down else None
                for place in PLACES
            )
            if conv is not None and width != next_width:
                raise UserError(
                    f"discriminator.attention.{size}: place conv needs equal widths, not {width} and {next_width}"
                )
            hidden = width if settings.narrow and i else next_width
            block = DiscriminatorBlock(width, next_width, down, i == 0, settings.relu_shortcut, branch, conv, hidden)
            self.blocks.append(block)
            if after is not None:
                self.attention[f"{size}x{size}"] = after

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for block in self.blocks:
            x = checkpoint_activations(block, x, enabled=self.activation_checkpointing)  # (B, C, H/2, W/2)
            if block.down and (place := f"{x.shape[2]}x{x.shape[3]}") in self.attention:
                x = checkpoint_activations(self.attention[place], x, enabled=self.activation_checkpointing)
        return x


class Head(nn.Module):
    """Features (B, C, H, W), labels (B,) -> logits (B,): h = Σ relu(features); w·h + b + <embedding(y), h>.

    The projection discriminator of Miyato & Koyama (2018), eq. 4.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(channels, 1)
        self.embedding = Projection(num_classes, channels) if num_classes else None

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        pooled = F.relu(features).sum(dim=(2, 3))  # (B, C)
        logits = self.linear(pooled).squeeze(1)
        if (labels is None) != (self.embedding is None):
            raise ValueError(
                "this discriminator needs labels" if labels is None else "this discriminator takes no labels"
            )
        if self.embedding is None:
            return logits
        return logits + (self.embedding(labels) * pooled).sum(dim=1)


class Discriminator(nn.Module):
    """Images (B, C, R, R) in [-1, 1], labels (B,), which of them are `reals` (B,) -> DiscriminatorOutput.

    Logits (B,); with the front-end zoom (B, S), one column per scale. Only front-ends use `reals`, in their penalties.
    """

    anchors: Tensor  # only with LeCam regularization: moving averages of the logits, (2,)

    def __init__(self, settings: DiscriminatorSettings, resolution: int, num_classes: int, image_channels: int = 3):
        super().__init__()
        self.settings, self.resolution, self.num_classes = settings, resolution, num_classes
        self.image_channels = image_channels
        widths, downs = _widths(settings), discriminator_downs(resolution)
        if isinstance(frontend := settings.frontend, CoarseToFineSettings):
            widths = _widths(settings, frontend.coarse_width)
            downs = (resolution // frontend.cells).bit_length() - 1
        self.trunk = Trunk(settings, resolution, widths, downs, image_channels)
        self.head = Head(widths[-1], num_classes)
        self.frontend = _frontend(settings, resolution, num_classes, image_channels)

    def forward(self, images: Tensor, labels: Tensor | None = None, reals: Tensor | None = None) -> DiscriminatorOutput:
        if self.frontend is None:
            return DiscriminatorOutput(self.head(self.trunk(images), labels), {})
        return self.frontend(self.trunk, self.head, images, labels, reals)


def _widths(settings: DiscriminatorSettings, share: float = 1) -> list[int]:
    """Output channels of the blocks, times `share`."""
    return [max(1, round(share * settings.channels * width)) for width in settings.widths]


def _frontend(
    settings: DiscriminatorSettings, resolution: int, num_classes: int, image_channels: int
) -> FrontEnd | None:  # fmt: skip
    """The front-end of the settings, with its own trunks and heads.

    Coarse to fine: the fine trunk has the widths of a plain trunk, except for its features, which must match the coarse
    ones. It halves a patch as often as a plain trunk halves an image, down to one pixel. Zoom: every scale has a trunk
    and a head like the plain ones; all but the last have a proposal.
    """
    frontend, widths, downs = settings.frontend, _widths(settings), discriminator_downs(resolution)
    if isinstance(frontend, CoarseToFineSettings):
        patch = frontend.patch_side(resolution)
        widths[-1] = _widths(settings, frontend.coarse_width)[-1]
        fine = Trunk(settings, patch, widths, min(downs, patch.bit_length() - 1), image_channels)
        return CoarseToFine(frontend, patch, fine)
    if isinstance(frontend, ZoomSettings):
        size, closer = frontend.size or resolution, frontend.scales - 1
        trunks = [Trunk(settings, size, widths, downs, image_channels) for _ in range(closer)]
        heads = [Head(widths[-1], num_classes) for _ in range(closer)]
        sides = [side >> downs for side in (resolution, size)][:closer]  # of the features that proposals read
        proposals = [Proposal(widths[-1] * side**2, frontend.hidden) for side in sides]
        return Zoom(frontend, resolution, size, trunks, heads, proposals)
    return None

"""Convolutions with built-in resampling by 2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLD_FROM_PIXELS = 1024  # batch · height · width of the smaller map; below it the plain form is faster


class ResamplingConv2d(nn.Conv2d):
    """A 3×3 convolution, padding 1, with resampling by 2 built in. `folding=False` computes the plain form.

    Folded, every tap of a 4×4 kernel is a sum of taps of the 3×3 kernel, per axis [w0, w0 + w1, w1 + w2, w2]: one
    linear map of the nine taps, the same for every channel. It saves multiplications on the map but adds work on the
    weight (docs/performance.md).
    """

    folding = True
    fold_matrix: Tensor  # (9, 16)

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)
        taps = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
        sums = torch.einsum("ai,bj->ijab", taps, taps)  # (3, 3, 4, 4)
        sums = sums.flip(0, 1) if isinstance(self, UpsampleConv2d) else sums / 4
        self.register_buffer("fold_matrix", sums.reshape(9, 16), persistent=False)

    def fold(self, weight: Tensor) -> Tensor:
        """(D, C, 3, 3) -> (D, C, 4, 4)."""
        return (weight.flatten(2) @ self.fold_matrix).unflatten(2, (4, 4))

    def folds(self, batch: int, height: int, width: int) -> bool:
        """Whether to fold for a smaller map of this size."""
        return self.folding and batch * height * width >= FOLD_FROM_PIXELS


class UpsampleConv2d(ResamplingConv2d):
    """Nearest ×2, then conv 3×3: (B, C, H, W) -> (B, D, 2H, 2W). Folded: one transposed conv 4×4 of stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight  # read once: reading a spectrally normalized weight is a power iteration
        if not self.folds(input.shape[0], *input.shape[2:]):
            return F.conv2d(upsample(input), weight, self.bias, padding=1)
        return F.conv_transpose2d(input, self.fold(weight.transpose(0, 1)), self.bias, stride=2, padding=1)


class BilinearConv2d(nn.Conv2d):
    """Bilinear ×2, then conv 3×3: (B, C, H, W) -> (B, D, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(upsample_bilinear(input))


@torch.no_grad()
def fold_upsampling(conv: UpsampleConv2d) -> nn.ConvTranspose2d:
    """The transposed convolution with the folded kernel of `conv`, equal at every size; it shares the bias."""
    transposed = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1, device="meta")
    transposed.weight = nn.Parameter(conv.fold(conv.weight.transpose(0, 1)), requires_grad=False)  # (C, D, 4, 4)
    transposed.bias = conv.bias
    return transposed


class DownsampleConv2d(ResamplingConv2d):
    """Conv 3×3, then average pool 2: (B, C, H, W) -> (B, D, ⌊H/2⌋, ⌊W/2⌋). Folded: one conv 4×4 of stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not self.folds(input.shape[0], input.shape[2] // 2, input.shape[3] // 2):
            return downsample(F.conv2d(input, weight, self.bias, padding=1))
        return F.conv2d(input, self.fold(weight), self.bias, stride=2, padding=1)


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbor ×2: (B, C, H, W) -> (B, C, 2H, 2W)."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        b, c, h, w = x.shape  # as a view: compiled, the gradient of `interpolate` is added up cell by cell
        rows = x.permute(0, 2, 3, 1)[:, :, None, :, None]  # (B, H, 1, W, 1, C)
        return rows.expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsample_bilinear(x: Tensor) -> Tensor:
    """Bilinear ×2 between centers of cells: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Tensor) -> Tensor:
    """Average pool 2: (B, C, H, W) -> (B, C, ⌊H/2⌋, ⌊W/2⌋)."""
    return F.avg_pool2d(x, 2)

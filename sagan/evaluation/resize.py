"""TensorFlow 1's bilinear resize, which FID's network is shown, as two matrix products.

It samples at i · (input / output) without the half-pixel shift of later resizes and without antialiasing, as
torch_fidelity.interpolate_compat_tensorflow does (`align_corners=False`, method "slow").
"""

from functools import lru_cache

import torch
from torch import Tensor


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """float32 (B, H, W, C) -> (B, C, size, size), laid out as channels_last."""
    batch, height, width, channels = images.shape
    rows, columns = taps(height, size, images.device), taps(width, size, images.device)
    x = images.transpose(2, 3) @ columns.T  # (B, H, C, size)
    x = rows @ x.transpose(2, 3).reshape(batch, height, size * channels)  # (B, size, size·C)
    return x.view(batch, size, size, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def taps(count: int, size: int, device: torch.device) -> Tensor:
    """Weights (size, count) of `count` samples in each of `size` new ones: two in a row, which sum to 1."""
    positions = torch.arange(size, dtype=torch.float32) * torch.tensor(count / size, dtype=torch.float32)
    low = positions.long()
    fraction = (positions - low).double()
    weights = torch.zeros(size, count, dtype=torch.float64)
    new = torch.arange(size)
    weights[new, low] += 1 - fraction
    weights[new, (low + 1).clamp_max(count - 1)] += fraction  # the last sample is repeated
    return weights.float().to(device)

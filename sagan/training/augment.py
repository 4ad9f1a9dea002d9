"""Differentiable Augmentation for Data-Efficient GAN Training. Zhao, Liu, Lin, Zhu, Han. arXiv:2006.10738.

Parameters are drawn separately, on the CPU and for the whole batch, so they do not depend on the number of processes.
Applying them is differentiable in the images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Uniform numbers per image
DRAWS = {"color": 3, "translation": 2, "cutout": 2}


def draw_augmentation(policy: Sequence[str], count: int, rng: torch.Generator) -> Tensor:
    """Uniform [0, 1) parameters of `count` images: (count, P), P the sum of the policies' draws."""
    return torch.rand(count, sum(DRAWS[name] for name in policy), generator=rng)


def augment(images: Tensor, policy: Sequence[str], draws: Tensor) -> Tensor:
    """Apply the policies in order to (B, C, H, W) with parameters (B, P): -> (B, C, H, W)."""
    apply = {"color": _color, "translation": _translation, "cutout": _cutout}
    for name in policy:
        used, draws = draws[:, : DRAWS[name]], draws[:, DRAWS[name] :]
        images = apply[name](images, used)
    return images


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror the images of (B, C, H, W) for which `which` (B,) is True, left to right."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


CONSISTENCY_DRAWS = 3


def consistency_transform(images: Tensor, draws: Tensor) -> Tensor:
    """The transform T of consistency regularization (arXiv:1910.12027): random flip and shift.

    Shifts by up to 1/8 of each side, filling in by reflection. (B, C, H, W), uniform draws (B, 3) -> (B, C, H, W).
    """
    return _translation(flip(images, draws[:, 0] < 0.5), draws[:, 1:], reflect=True)


def _color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness ±0.5, saturation ×[0, 2), contrast ×[0.5, 1.5)."""
    brightness, saturation, contrast = (u[:, i, None, None, None].to(x.dtype) for i in range(3))
    x = x + (brightness - 0.5)
    gray = x.mean(dim=1, keepdim=True)
    x = gray + (x - gray) * (saturation * 2)
    level = x.mean(dim=(1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def _translation(x: Tensor, u: Tensor, reflect: bool = False) -> Tensor:
    """Shift by up to 1/8 of each side, filling with zeros or, with `reflect`, by reflection."""
    height, width = x.shape[2:]
    rows = _shifted(height, u[:, 0], reflect)  # (B, H)
    columns = _shifted(width, u[:, 1], reflect)  # (B, W)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    index = rows[:, :, None] * (width + 2) + columns[:, None, :]  # (B, H, W)
    flat = padded.flatten(2)  # (B, C, (H + 2)(W + 2))
    return flat.gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (height, width))


def _shifted(size: int, u: Tensor, reflect: bool) -> Tensor:
    """Source index of each pixel, (B, size), along a side padded by 1."""
    reach = int(size / 8 + 0.5)
    shift = (u * (2 * reach + 1)).floor().long() - reach  # (B,)
    position = torch.arange(size, device=u.device) + shift[:, None]
    if reflect:
        position = size - 1 - (size - 1 - position.abs()).abs()
    return (position + 1).clamp(0, size + 1)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """Zero a square of half the side, centered anywhere."""
    height, width = x.shape[2:]
    inside_rows, inside_columns = _covered(height, u[:, 0]), _covered(width, u[:, 1])
    hole = inside_rows[:, :, None] & inside_columns[:, None, :]  # (B, H, W)
    return x * (~hole)[:, None].to(x.dtype)


def _covered(size: int, u: Tensor) -> Tensor:
    length = int(size * 0.5 + 0.5)
    center = (u * (size + (1 - length % 2))).floor().long()  # (B,)
    offset = torch.arange(size, device=u.device) - (center[:, None] - length // 2)
    return (offset >= 0) & (offset < length)

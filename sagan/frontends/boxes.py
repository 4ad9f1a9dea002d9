"""Boxes in an image, and the part of the image inside one, enlarged; all differentiable in box and image.

A box (B, 3) is (tx, ty, tl): its centre, column and row, and half its side, where the image is [-1, 1]². The whole
image is (0, 0, 1).
"""

import torch
from torch import Tensor

from sagan.attention.functional import full_precision

SHARPNESS = 10.0  # of the mask's edges, a pixel


def whole_image(images: Tensor) -> Tensor:
    """The box of everything, of each image: (B, 3)."""
    return torch.tensor([0.0, 0.0, 1.0], dtype=images.dtype, device=images.device).expand(len(images), 3)


def box_from_shares(shares: Tensor, smallest: float) -> Tensor:
    """Shares (B, 3) in [0, 1] -> a box (B, 3) inside the image; 1/2, 1/2 is its centre.

    The last share leads from half a side of `smallest` to 1; the others from one border to the other.
    """
    half = smallest + (1 - smallest) * shares[:, 2:]
    return torch.cat([(2 * shares[:, :2] - 1) * (1 - half), half], dim=1)


def within(outer: Tensor, inner: Tensor) -> Tensor:
    """`inner` (B, 3), a box in the part of the image inside `outer` (B, 3), as a box in the image."""
    half = outer[:, 2:]
    return torch.cat([outer[:, :2] + half * inner[:, :2], half * inner[:, 2:]], dim=1)


def zoom(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The part of images (B, 3, R, R) inside boxes (B, 3), bilinearly on size × size pixels.

    What grid_sample gives for θ = [[tl, 0, tx], [0, tl, ty]] (Jaderberg et al. 2015, eq. 10). Rows and columns are
    sampled one after the other, as such a box allows: two matrix products, which can be differentiated twice and are
    deterministic on every device (grid_sample's are not). Beyond the border its pixels go on: the outermost samples
    of a box that touches it lie up to half a pixel outside.
    """
    side = images.shape[3]
    pixels = torch.arange(side, dtype=boxes.dtype, device=boxes.device)
    samples = (2 * torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 1) / size - 1  # in [-1, 1]
    places = boxes[:, :2, None] + boxes[:, 2:, None] * samples  # (B, 2, S)
    places = ((places + 1) * side / 2 - 0.5).clamp(0, side - 1)  # in pixels
    weights = (1 - (places[..., None] - pixels).abs()).clamp(min=0)  # (B, 2, S, R)
    columns, rows = weights.to(images.dtype)[:, :, None].unbind(1)  # (B, 1, S, R)
    with full_precision(images.device):
        return rows @ images @ columns.transpose(2, 3)


def boxcar(boxes: Tensor, resolution: int) -> Tensor:
    """The mask M (B, 1, R, R) of boxes (B, 3): near 1 inside, near 0 outside (RA-CNN, eqs. 5–6).

    M = [h(x - tx + tl) - h(x - tx - tl)] · [h(y - ty + tl) - h(y - ty - tl)], h the sigmoid, lengths in pixels.
    """
    pixels = torch.arange(resolution, dtype=boxes.dtype, device=boxes.device) + 0.5
    scale = resolution / 2
    centre, half = (boxes[:, :2] + 1) * scale, boxes[:, 2:] * scale  # (B, 2), (B, 1)
    low, high = (centre - half)[..., None], (centre + half)[..., None]  # (B, 2, 1)
    sides = (SHARPNESS * (pixels - low)).sigmoid() - (SHARPNESS * (pixels - high)).sigmoid()  # (B, 2, R)
    return sides[:, None, 1, :, None] * sides[:, None, 0, None, :]


def edges(boxes: Tensor) -> Tensor:
    """(…, 3) -> (…, 4): top, left, bottom, right in fractions of the image."""
    tx, ty, tl = boxes.unbind(-1)
    return (torch.stack([ty - tl, tx - tl, ty + tl, tx + tl], dim=-1) + 1) / 2

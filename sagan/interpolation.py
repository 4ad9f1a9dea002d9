"""Ways between two latents and between two classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def slerp(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """Spherical interpolation of two latents (z_dim,) -> (frames, z_dim). Shoemake 1985; White, arXiv:1609.04468.

    From `start` to `end`, both included, turning by equal angles; a straight line where the two point the same way.
    """
    t = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]
    a, b = start.double(), end.double()
    angle = torch.acos(F.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a, b, t).float()
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).float()


def class_path(start: int, end: int, num_classes: int, frames: int) -> Tensor:
    """Class weights from all on `start` to all on `end`, in equal steps: (frames, num_classes), rows sum to 1."""
    classes = F.one_hot(torch.tensor([start, end]), num_classes).double()
    return torch.lerp(classes[0], classes[1], torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]).float()

"""Small discriminators with front-ends, none of their parameters at its initial value, and images for them."""

import torch
from network_cases import scatter
from tiny import CLASSES, tiny_config
from torch import Tensor

from sagan.config.load import Config
from sagan.models.discriminator import Discriminator
from sagan.models.generator import build_discriminator

COARSE_TO_FINE = "{name: coarse_to_fine, patches: 5, patch: 16, hint: 0.3}"  # patches that overlap, with attention
ZOOM = "{name: zoom, scales: 3, size: 16, rank: 0.7, margin: 0.4}"
MASKED = "{name: zoom, mask: true, smallest: 0.2}"
FRONT_ENDS = {"coarse_to_fine": COARSE_TO_FINE, "zoom": ZOOM, "masked": MASKED}


def front_end_config(settings: str, *overrides: str) -> Config:
    """The tiny config, its discriminator just wide enough for attention in the coarse trunk."""
    return tiny_config(f"discriminator.frontend={settings}", "discriminator.channels=4", *overrides)


def front_end(settings: str, num_classes: int = CLASSES, *overrides: str) -> Discriminator:
    """In float64."""
    discriminator = scatter(build_discriminator(front_end_config(settings, *overrides), num_classes).double())
    assert isinstance(discriminator, Discriminator)
    return discriminator


def judged(count: int, num_classes: int = CLASSES, size: int = 32) -> tuple[Tensor, Tensor | None, Tensor]:
    """Images (B, 3, R, R) that take a gradient, labels (B,), which of them are real (B,): the first half."""
    rng = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, size, size, generator=rng, dtype=torch.float64) * 2 - 1
    labels = torch.randint(num_classes, (count,), generator=rng) if num_classes else None
    return images.requires_grad_(), labels, torch.arange(count) < count // 2

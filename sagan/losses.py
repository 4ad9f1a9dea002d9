"""Adversarial losses on logits (B,) or (B, S), one column a scale, in float32.

Each returns a mean over batch and scales, so micro-batches average.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """`discriminator(real_logits, fake_logits)` and `generator(fake_logits)`, both to be minimised."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def _logistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def _critic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return fake_logits.mean() - real_logits.mean()


def _raise_logits(fake_logits: Tensor) -> Tensor:
    return -fake_logits.mean()


def _non_saturating(fake_logits: Tensor) -> Tensor:
    return F.softplus(-fake_logits).mean()


LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge, _raise_logits),  # Lim & Ye 2017; SAGAN eq. 4
    "non_saturating": AdversarialLoss(_logistic, _non_saturating),  # Goodfellow et al. 2014
    "wasserstein": AdversarialLoss(_critic, _raise_logits),  # Arjovsky et al. 2017
}


def r1_penalty(reals: Tensor, real_logits: Tensor) -> Tensor:
    """½·E‖∇D(x)‖² on reals (B, 3, R, R) that require gradients (Mescheder et al. 2018, eq. 9), differentiable.

    D(x) is the logit of x, of several scales their mean, as in the losses.
    """
    scales = real_logits.numel() // len(real_logits)
    (gradient,) = torch.autograd.grad(real_logits.sum() / scales, reals, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2

"""Adversarial losses on logits (B,), in float32. Each returns a mean over the batch, so micro-batches average."""

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


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits in float32, others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def r1_penalty(reals: Tensor, real_logits: Tensor) -> Tensor:
    """½·E‖∇D(x)‖² on reals (B, 3, R, R) that require gradients (Mescheder et al. 2018, eq. 9), differentiable."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2

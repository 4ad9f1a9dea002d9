"""The objectives of the two networks: adversarial losses on float32 logits, gradient penalties, consistency.

Logits are (B,), or (B, S) with one column per scale of the discriminator. Every term is a mean over batch and scales,
so the mean over micro-batches is the term of the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sagan.config.schema import Config, ConsistencySettings


@dataclass(frozen=True)
class AdversarialLoss:
    """`discriminator(real_logits, fake_logits)` and `generator(fake_logits, real_logits)`, both to be minimized.

    `needs_reals`: the generator's loss uses real_logits too, so its update evaluates the discriminator on reals.
    Otherwise real_logits is None there.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    needs_reals: bool = False


def _hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def _logistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def _critic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return fake_logits.mean() - real_logits.mean()


def _raise_logits(fake_logits: Tensor, _: Tensor | None) -> Tensor:
    return -fake_logits.mean()


def _non_saturating(fake_logits: Tensor, _: Tensor | None) -> Tensor:
    return F.softplus(-fake_logits).mean()


LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge, _raise_logits),  # Lim & Ye 2017; SAGAN eq. 4
    "non_saturating": AdversarialLoss(_logistic, _non_saturating),  # Goodfellow et al. 2014
    "wasserstein": AdversarialLoss(_critic, _raise_logits),  # Arjovsky et al. 2017
}


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """½·E‖∇D(x)‖² on images (B, 3, R, R) that require gradients (Mescheder et al. 2018, eq. 9), differentiable.

    D(x) is the logit of x or, with several scales, their mean, as in the losses.
    """
    scales = logits.numel() // len(logits)
    (gradient,) = torch.autograd.grad(logits.sum() / scales, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


@dataclass(frozen=True)
class GradientPenalty:
    """weight · ½·E‖∇D(x)‖² on reals (R1) or fakes (R2). `name` is its key in the log, where it is unweighted."""

    name: str
    weight: float
    images: Literal["reals", "fakes"]


@dataclass(frozen=True)
class Objective:
    """The adversarial loss and the regularization of the discriminator.

    `policy`: DiffAugment's policies, applied to every input of the discriminator. `consistency`: weights of the
    consistency regularization.
    """

    loss: AdversarialLoss
    penalties: Sequence[GradientPenalty] = ()
    policy: Sequence[str] = ()
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)

    def regularization(self, values: Mapping[str, float]) -> float:
        """The part of d_loss that is not adversarial, from the values that a discriminator step returns."""
        weights = {penalty.name: penalty.weight for penalty in self.penalties}
        weights |= {f"consistency_{name}": weight for name, weight in self.consistency}
        return sum(weights.get(name, 1.0) * value for name, value in values.items() if name not in ADVERSARIAL)


# Values of a step that are not regularization terms
ADVERSARIAL = ("d_loss", "g_loss", "real_logits", "fake_logits")


def make_objective(config: Config) -> Objective:
    """The objective of a config's `loss` and `augment`."""
    penalties = [GradientPenalty("r1", config.loss.r1, "reals")] if config.loss.r1 else []
    return Objective(LOSSES[config.loss.name], penalties, config.augment.policy, config.loss.consistency)

"""The objectives of the two networks: adversarial losses on float32 logits, gradient penalties, consistency.

Logits are (B,), or (B, S) with one column per scale of the discriminator. Every term is a mean over batch and scales,
so the mean over micro-batches is the term of the whole batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

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


def _relativistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.softplus(fake_logits - real_logits).mean()


def _raise_logits(fake_logits: Tensor, _: Tensor | None) -> Tensor:
    return -fake_logits.mean()


def _non_saturating(fake_logits: Tensor, _: Tensor | None) -> Tensor:
    return F.softplus(-fake_logits).mean()


def _relativistic_generator(fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    assert real_logits is not None
    return F.softplus(real_logits - fake_logits).mean()


LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge, _raise_logits),  # Lim & Ye 2017; SAGAN eq. 4
    "non_saturating": AdversarialLoss(_logistic, _non_saturating),  # Goodfellow et al. 2014
    "wasserstein": AdversarialLoss(_critic, _raise_logits),  # Arjovsky et al. 2017
    # Pairs of a real and a fake (Jolicoeur-Martineau 2018; R3GAN: Huang et al. 2025, arXiv:2501.05441)
    "relativistic": AdversarialLoss(_relativistic, _relativistic_generator, needs_reals=True),
}


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """½·E‖∇D(x)‖² on images (B, C, R, R) that require gradients (Mescheder et al. 2018, eq. 9), differentiable.

    D(x) is the logit of x or, with several scales, their mean, as in the losses.
    """
    scales = logits.numel() // len(logits)
    (gradient,) = torch.autograd.grad(logits.sum() / scales, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


@dataclass(frozen=True)
class GradientPenalty:
    """weight · ½·E‖∇D(x)‖² on reals (R1) or fakes (R2). `name` is its key in the log, where it is unweighted.

    `every`: n > 1 applies it in every n-th discriminator update only, n times as strong (lazy regularization, Karras et
    al. 2020, arXiv:1912.04958).
    """

    name: str
    weight: float
    images: Literal["reals", "fakes"]
    every: int = 1


def lecam(real_logits: Tensor, fake_logits: Tensor, anchors: Tensor) -> Tensor:
    """E(D(x) - α_F)² + E(D(G(z)) - α_R)² (Tseng et al. 2021, arXiv:2104.03310).

    `anchors` (2,): α_R and α_F, moving averages of the logits of reals and of fakes. Differs from the paper: they start
    at 0 and the term is active from the first step.
    """
    return (real_logits - anchors[1]).square().mean() + (fake_logits - anchors[0]).square().mean()


def orthogonal_penalty(network: nn.Module) -> Tensor:
    """Σ‖WᵀW ⊙ (1 - I)‖² over the network's convolutions and linear layers (Brock et al. 2019, arXiv:1809.11096, eq. 3).

    The columns of Wᵀ are the filters, one per output channel; with spectral norm, W is the raw weight, as in the
    authors' code. Class embeddings are left out.
    """
    terms = []
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight: Any = module.parametrizations.weight.original if is_parametrized(module) else module.weight  # type: ignore[union-attr]
            gram = weight.flatten(1) @ weight.flatten(1).T  # (out, out)
            terms.append((gram - torch.diag(gram.diag())).square().sum())
    return torch.stack(terms).sum()


@dataclass(frozen=True)
class Objective:
    """The adversarial loss and its regularization.

    `policy`: DiffAugment's policies, applied to every input of the discriminator. `consistency`, `lecam`,
    `orthogonal`: weights of these terms.
    """

    loss: AdversarialLoss
    penalties: Sequence[GradientPenalty] = ()
    policy: Sequence[str] = ()
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)
    lecam: float = 0.0
    lecam_decay: float = 0.99
    orthogonal: float = 0.0


def make_objective(config: Config) -> Objective:
    """The objective of a config's `loss` and `augment`."""
    loss = config.loss
    penalties = (
        GradientPenalty("r1", loss.r1, "reals", loss.r1_every),
        GradientPenalty("r2", loss.r2, "fakes", loss.r2_every),
    )
    penalties = [penalty for penalty in penalties if penalty.weight]
    return Objective(LOSSES[loss.name], penalties, config.augment.policy, loss.consistency, loss.lecam,
                     loss.lecam_decay, loss.orthogonal)  # fmt: skip

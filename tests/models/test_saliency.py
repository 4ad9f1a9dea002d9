"""Saliency against the derivatives written out, and what entropy cannot rank."""

import pytest
import torch
from front_ends import COARSE_TO_FINE, front_end
from torch import Tensor

from sagan.layers.spectral_norm import hold_state
from sagan.models.frontends import entropy_saliency, head_saliency, logit_saliency


def features_of(batch: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(batch, 6, 3, 4, generator=rng, dtype=torch.float64, requires_grad=True)


def test_entropy_saliency_is_the_equation():
    features = features_of()
    weight = 0.1 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = entropy_saliency(features.relu().sum((2, 3)) @ weight.T, features)
    for b, c in enumerate(features.detach()):
        shares = (weight @ c.relu().sum((1, 2))).softmax(0)
        slope = -shares * (shares.log() - (shares * shares.log()).sum())  # ∂H/∂logits
        gradient = (slope @ weight)[:, None, None] * (c > 0)
        torch.testing.assert_close(found[b], gradient.square().sum(0).sqrt(), rtol=1e-10, atol=0)
    assert not found.requires_grad


@pytest.mark.parametrize("logit", [0.0, 0.3, -2.0, 5.0])
def test_one_logit_has_no_entropy_saliency_at_equilibrium(logit: float):
    """Entropy saliency of one logit l is |l|·p(1-p) times that of the logit: 0 at l = 0."""
    features = features_of(1)
    summed = features.relu().sum((2, 3)) @ torch.linspace(-1, 1, 6, dtype=torch.float64)
    logits = summed - summed.detach() + logit
    plain = logit_saliency(logits, features)
    entropy = entropy_saliency(torch.stack([logits, torch.zeros_like(logits)], 1), features)
    p = torch.tensor(logit, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(entropy, plain * abs(logit) * p * (1 - p), rtol=1e-10, atol=0)
    assert plain.max() > 0


@pytest.mark.parametrize("classes", [0, 4])
def test_saliency_of_a_head(classes: int):
    """It works under no_grad and with frozen parameters, and includes the labels' term."""
    discriminator = front_end(COARSE_TO_FINE, classes).requires_grad_(False)
    width = discriminator.head.linear.in_features
    c = torch.randn(3, width, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0]) if classes else None
    with torch.no_grad(), hold_state(discriminator):
        found = head_saliency(discriminator.head, c, labels)
        slope = discriminator.head.linear.weight.expand(3, -1)
        if classes:
            slope = slope + discriminator.head.embedding.weight[labels]
    torch.testing.assert_close(found, ((c > 0) * slope[:, :, None, None]).square().sum(1).sqrt(), rtol=1e-12, atol=0)
    assert not found.requires_grad

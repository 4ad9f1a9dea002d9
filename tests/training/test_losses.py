"""Adversarial losses and R1 against closed forms, finite differences and second derivatives."""

import math

import pytest
import torch
from tiny import tiny_batches, tiny_config, tiny_gan
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.layers.spectral_norm import hold_state
from sagan.training.losses import LOSSES, gradient_penalty

REAL, FAKE = [2.0, 0.5, -1.5, 1.0], [-3.0, 0.25, 1.5, 0.0]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


CLOSED_FORMS = {
    "hinge": (mean([max(0, 1 - x) for x in REAL]) + mean([max(0, 1 + x) for x in FAKE]), -mean(FAKE)),
    "non_saturating": (mean([softplus(-x) for x in REAL]) + mean(list(map(softplus, FAKE))),
                       mean([softplus(-x) for x in FAKE])),
    "wasserstein": (mean(FAKE) - mean(REAL), -mean(FAKE)),
    "relativistic": (mean([softplus(f - r) for r, f in zip(REAL, FAKE, strict=True)]),
                     mean([softplus(r - f) for r, f in zip(REAL, FAKE, strict=True)])),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_closed_form(name: str) -> None:
    real, fake = torch.tensor(REAL, dtype=torch.float64), torch.tensor(FAKE, dtype=torch.float64)
    found = LOSSES[name].discriminator(real, fake).item(), LOSSES[name].generator(fake, real).item()
    assert found == pytest.approx(CLOSED_FORMS[name], rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_stay_finite(name: str) -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = LOSSES[name].discriminator(logits, logits.flip(0)) + LOSSES[name].generator(logits, logits.flip(0))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_hinge_stops_at_the_margin() -> None:
    real, fake = torch.tensor([1.1, 0.9], requires_grad=True), torch.tensor([-1.1, -0.9], requires_grad=True)
    gradients = torch.autograd.grad(LOSSES["hinge"].discriminator(real, fake), [real, fake])
    torch.testing.assert_close(gradients, (torch.tensor([0.0, -0.5]), torch.tensor([0.0, 0.5])))


def test_r1_of_a_linear_critic_is_half_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    reals = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.arange(1.0, 6, dtype=torch.float64)  # image k has the gradient k·w
    logits = scale * (reals * weight).sum(dim=(1, 2, 3))
    expected = (scale.square().mean() * weight.square().sum()) / 2
    found = gradient_penalty(reals, logits)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=0)


def test_r1_against_finite_differences() -> None:
    matrix = torch.randn(48, 6, dtype=torch.float64)

    def critic(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ matrix).square().sum(dim=1)

    reals = 0.1 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    squares, step = torch.zeros(2, dtype=torch.float64), 1e-5
    for pixel in range(48):
        nudge = torch.zeros(48, dtype=torch.float64)
        nudge[pixel] = step
        slope = (critic(reals + nudge.view(3, 4, 4)) - critic(reals - nudge.view(3, 4, 4))) / (2 * step)
        squares += slope.square()
    leaf = reals.clone().requires_grad_()
    assert gradient_penalty(leaf, critic(leaf)).item() == pytest.approx(squares.mean().item() / 2, rel=1e-6)


def test_r1_differentiates_twice_through_attention() -> None:
    config = tiny_config()
    discriminator = tiny_gan(config).discriminator
    reals, _ = tiny_batches(config, 1, 3)[0]
    parameters = dict(discriminator.named_parameters())
    direction = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}

    def r1(step: float) -> Tensor:
        """At parameters `step` along the direction."""
        leaf = reals.images.clone().requires_grad_()
        moved = {name: parameter + step * direction[name] for name, parameter in parameters.items()}
        with hold_state(discriminator), sdpa_kernel(SDPBackend.MATH):
            return gradient_penalty(leaf, functional_call(discriminator, moved, (leaf, reals.labels)).logits).double()

    assert all(p.abs() > 0.01 for n, p in parameters.items() if n.endswith("gamma"))
    gradient = dict(zip(parameters, torch.autograd.grad(r1(0), [*parameters.values()], allow_unused=True), strict=True))
    attention = [g for name, g in gradient.items() if "attention" in name]
    assert len(attention) == 5
    assert all(g is not None and g.abs().max() > 1e-9 for g in attention)
    slope = sum((g * direction[name]).sum() for name, g in gradient.items() if g is not None)
    assert (r1(1e-6) - r1(-1e-6)).item() / 2e-6 == pytest.approx(float(slope), rel=1e-4)

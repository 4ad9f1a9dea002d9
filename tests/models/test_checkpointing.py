"""Activation checkpointing: bit-for-bit identical results, state that moves once, less memory."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from common import peak_mib
from processes import train_in_two
from tiny import assert_same_bits, log_of, one_process, tiny_batches, tiny_config, tiny_gan, write_config
from torch import Tensor, nn

from sagan.attention import ATTENTION, record_attention
from sagan.data.dataset import PreparedData
from sagan.layers.spectral_norm import hold_state
from sagan.models.checkpointing import checkpoint_activations
from sagan.models.gan import GAN
from sagan.models.generator import build_discriminator
from sagan.training.ema import update_ema
from sagan.training.losses import LOSSES, Objective, make_objective
from sagan.training.step import discriminator_step, generator_step

HINGE = Objective(LOSSES["hinge"])
SWITCH = "training.activation_checkpointing=true"


def trained(*overrides: str, steps: int = 1, engine: type[Accelerator] = Accelerator) -> GAN:
    """A tiny GAN after updates of both networks, two micro-batches each."""
    config = tiny_config(*overrides)
    gan, objective = tiny_gan(config, dtype=torch.float32), make_objective(config)
    one_process()  # forgets what the tests before asked of Accelerate
    for step in range(steps):
        batches = tiny_batches(config, 2, 2, seed=step, dtype=torch.float32)
        discriminator_step(gan, objective, batches, engine(cpu=True))
        generator_step(gan, objective, [draws for _, draws in batches], engine(cpu=True))
        update_ema(gan.ema, gan.generator, 0.9)
    return gan


class InBFloat16(Accelerator):
    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def attention(name: str, options: str = "") -> list[str]:
    return [f"{n}.attention={{8: {{name: {name}{options}}}}}" for n in ("generator", "discriminator")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss.r1=1", "augment.policy=[color, translation]"],
        ["generator.attention={8: {name: self_attention, place: branch}, 16: {name: augmented_conv, place: conv}}"],
        ["discriminator.frontend=coarse_to_fine", "discriminator.channels=4", "loss.r1=1"],
        ["discriminator.frontend=zoom", "discriminator.channels=4", "loss.r1=1"],
        ["generator.class_norm=shared", "generator.hierarchical=true"],
        [*attention("cbam", ", norm: batch")],
        [*attention("em_attention", ", norm: batch"), "loss.r1=1"],
    ],
    ids=lambda overrides: " ".join(overrides)[:60] or "plain",
)
def test_training_is_the_same_to_the_bit(overrides: list[str]) -> None:
    """With R1, bases, batch norm in mechanisms, and front-ends that call a trunk twice."""
    assert_same_bits(trained(*overrides, SWITCH), trained(*overrides))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_every_mechanism_learns_the_same(name: str) -> None:
    overrides = [*attention(name), "discriminator.channels=4", "generator.channels=4"]
    assert_same_bits(trained(*overrides, SWITCH), trained(*overrides))


def test_under_autocast_too() -> None:
    """The second forward runs in the precision of the first."""
    assert_same_bits(trained(SWITCH, engine=InBFloat16), trained(engine=InBFloat16))


def test_it_is_on_where_it_is_asked_for() -> None:
    for overrides, expected in (([SWITCH], True), ([], False)):
        gan = trained(*overrides, steps=0)
        assert all(m.activation_checkpointing is expected for m in (gan.generator, gan.discriminator.trunk))
    frontend = build_discriminator(tiny_config(SWITCH, "discriminator.frontend=zoom", "discriminator.channels=4"), 4)
    assert all(trunk.activation_checkpointing for trunk in [frontend.trunk, *frontend.frontend.trunks])  # type: ignore[union-attr]


def test_less_is_kept_for_backward() -> None:
    peaks = []
    for switch in ("false", "true"):
        settings = ["generator.channels=8", "discriminator.channels=8", "discriminator.attention={}"]
        config = tiny_config(f"training.activation_checkpointing={switch}", "data.resolution=64", *settings)
        gan = tiny_gan(config, dtype=torch.float32)
        ((_, draws),) = tiny_batches(config, 1, 4, dtype=torch.float32)
        peaks.append(peak_mib(lambda g=gan, d=draws: generator_step(g, HINGE, [d], one_process()), torch.device("cpu")))
    assert peaks[1] < 0.7 * peaks[0]


def test_state_is_where_the_forward_left_it() -> None:
    """Two forwards before one backward, the second held and recorded: state moves once."""
    config = tiny_config(*attention("em_attention"), "discriminator.channels=4", "generator.channels=4")
    torch.manual_seed(0)
    first, second = (torch.randn(3, 3, 32, 32) for _ in range(2))
    plain = build_discriminator(config, 4)
    other = copy.deepcopy(plain)
    other.trunk.activation_checkpointing = True
    found = []
    for network in (plain, other):
        nn.init.ones_(network.trunk.attention["8x8"].gamma)  # type: ignore[arg-type]
        one = network.trunk(first)
        with record_attention(network) as maps, hold_state(network):
            two = network.trunk(second)
            (one.square().sum() + two.sum()).backward()
        gradients = {f"gradient of {name}": p.grad for name, p in network.trunk.named_parameters()}
        weights = {f"map {name}": recorded.weights for name, recorded in maps.items()}
        found.append(gradients | weights | network.trunk.state_dict())
        assert weights
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_nothing_is_prepared_where_no_gradient_is_taken() -> None:
    """Without gradients there is one forward; with gradients a second one in backward."""
    calls: list[Tensor] = []

    class Once(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return x * x

    with torch.no_grad():
        assert checkpoint_activations(Once(), torch.ones(2)).grad_fn is None
    x = torch.ones(2, requires_grad=True)
    checkpoint_activations(Once(), x).sum().backward()
    assert len(calls) == 3
    assert torch.equal(x.grad, torch.full((2,), 2.0))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_in_two_processes_too(tmp_path: Path, data: PreparedData) -> None:
    for name, switch in (("plain", False), ("recomputed", True)):
        settings = {"generator": {"sync_norm": True}, "training": {"steps": 3, "activation_checkpointing": switch}}
        settings |= {"optim": {"accumulation": 2}}
        train_in_two(write_config(tmp_path / f"{name}.yaml", data, **settings), tmp_path / name)
    assert log_of(tmp_path / "recomputed") == log_of(tmp_path / "plain") != []

"""What a run measures of itself, and that measuring changes nothing."""

import copy

import pytest
import torch
from tiny import assert_same_state, one_process, tiny_batches, tiny_config, tiny_gan

from sagan.config.load import load_config
from sagan.config.schema import TrainingSettings
from sagan.models.gan import GAN
from sagan.models.generator import build_discriminator, build_generator
from sagan.training.logging import attention_warning, measure, memory_mib, quadratic_warnings
from sagan.training.losses import LOSSES, Objective
from sagan.training.step import LatentBatch, discriminator_step, generator_step


@pytest.fixture(scope="module")
def trained() -> tuple[GAN, LatentBatch]:
    """A GAN whose gradients stand."""
    config = tiny_config()
    gan = tiny_gan(config, dtype=torch.float32)
    batches = tiny_batches(config, 1, 8, dtype=torch.float32)
    discriminator_step(gan, Objective(LOSSES["hinge"]), batches, one_process())
    generator_step(gan, Objective(LOSSES["hinge"]), [batches[0][1]], one_process())
    return gan, batches[0][1]


def test_everything_is_measured(trained: tuple[GAN, LatentBatch]) -> None:
    gan, draws = trained
    measured = measure(gan, {"g_loss": torch.tensor(0.5)}, draws)
    assert all(type(value) is float for value in measured.values())
    assert measured["g_loss"] == 0.5
    for player, network in (("g", gan.generator), ("d", gan.discriminator)):
        place = "attention.8x8" if player == "g" else "trunk.attention.8x8"
        gamma = dict(network.named_parameters())[f"{place}.gamma"]
        assert measured[f"{player}_gamma/{place}"] == pytest.approx(gamma.item())
        squares = sum(p.grad.double().square().sum() for p in network.parameters() if p.grad is not None)
        assert measured[f"{player}_gradient_norm"] == pytest.approx(float(squares) ** 0.5, rel=1e-5)
        weights = {n: p for n, p in network.named_parameters() if n.endswith("original")}
        assert weights
        for name, weight in weights.items():
            sigma = measured[f"{player}_sigma/{name.replace('parametrizations.weight.original', 'weight')}"]
            assert 0 < sigma <= 1.001 * torch.linalg.svdvals(weight.detach().flatten(1))[0].item()
        assert 0 <= measured[f"{player}_entropy/{place}"] <= 1
        assert 0 < measured[f"{player}_distance/{place}"] < 1
    assert measured["memory_mib"] > 10


def test_measuring_moves_nothing(trained: tuple[GAN, LatentBatch]) -> None:
    gan, draws = trained
    before, rng = copy.deepcopy(gan), torch.get_rng_state()
    measure(gan, {}, draws)
    for name in ("generator", "discriminator", "ema"):
        assert_same_state(getattr(gan, name), getattr(before, name).state_dict())
        assert getattr(gan, name).training
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("log_every", [1, 7, 50])
def test_unused_attention_is_reported_once(log_every: int) -> None:
    settings = TrainingSettings(steps=400, log_every=log_every)
    logged = [step for step in range(1, 401) if step % log_every == 0 or step == 400]
    unused = {"g_gamma/attention.16x16": 1e-5, "d_gamma/trunk.attention.16x16": 0.2, "g_loss": 0.0}
    ((step, text),) = [(s, text) for s in logged if (text := attention_warning(s, settings, unused))]
    assert 100 <= step < 100 + log_every
    assert "attention unused: g_gamma/attention.16x16" in text
    assert "trunk" not in text
    used = unused | {"g_gamma/attention.16x16": -0.01}
    assert not any(attention_warning(step, settings, used) for step in logged)


def test_memory_is_in_mebibytes() -> None:
    assert 100 < memory_mib(torch.device("cpu")) < 100_000


def test_large_quadratic_maps_are_reported_before_they_are_allocated() -> None:
    settings = ["data.resolution=128", "generator.channels=4", "discriminator.channels=4", "training.batch_size=16"]
    attention = "attention={64: {name: transformer, heads: 4}, 32: {name: non_local, form: concatenation}}"
    config = load_config(None, [*settings, f"generator.{attention}", f"discriminator.{attention}", "loss.r1=1"])
    generator, discriminator = build_generator(config, 0), build_discriminator(config, 0)
    of_g, of_d = quadratic_warnings(config, generator, discriminator, processes=2)
    gigabytes = 4 * 8 * 4096**2 * 4 / 2**30  # 4 bytes, 8 images a process, 4 heads
    assert of_g.startswith("generator attention.64x64: attention at 64x64")
    assert f"{gigabytes:.1f} GiB of weights for 8 images (stored wherever" in of_g
    assert of_d.startswith("discriminator trunk.attention.64x64")
    assert f"{2 * gigabytes:.1f} GiB of weights for 16 images (R1 stores" in of_d
    small = load_config(None, [*settings, "loss.r1=1"])
    assert quadratic_warnings(small, build_generator(small, 0), build_discriminator(small, 0), 1) == []

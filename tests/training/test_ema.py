"""The averaged generator: its decay, its update, and the copy that sheets, scores and snapshots use."""

import copy

import pytest
import torch
from tiny import assert_same_state, one_process, tiny_batches, tiny_config, tiny_gan
from torch.nn.utils import parametrize

from sagan.config.schema import EmaSettings
from sagan.layers.spectral_norm import power_iterations
from sagan.models.gan import GAN
from sagan.training.ema import decay_at, ema_generator, update_ema
from sagan.training.losses import LOSSES, Objective
from sagan.training.step import generator_step


def test_fixed_decay_begins_at_start() -> None:
    settings = EmaSettings.model_validate({"decay": 0.9, "start": 10})
    assert [decay_at(settings, step, 64) for step in (1, 9, 10, 1000)] == [0, 0, 0.9, 0.9]


def test_a_decay_needs_no_half_life() -> None:
    assert tiny_config("ema={decay: 0.9, half_life: null, ramp: null}") == tiny_config("ema.decay=0.9")


def test_half_life_counts_images() -> None:
    settings = EmaSettings(half_life=1280, ramp=None)
    for batch in (10, 64, 128):
        decay = decay_at(settings, 10**6, batch)
        assert decay ** (1280 / batch) == pytest.approx(0.5, rel=1e-12)


def test_ramp_bounds_the_half_life_early_on() -> None:
    settings = EmaSettings(half_life=1000, ramp=0.05)
    assert decay_at(settings, 100, 20) == pytest.approx(0.5 ** (20 / 100), rel=1e-12)  # 2000 images seen
    assert decay_at(settings, 1000, 20) == pytest.approx(0.5 ** (20 / 1000), rel=1e-12)  # just reached
    assert decay_at(settings, 10**6, 20) == decay_at(settings, 1000, 20)
    assert decay_at(settings, 0, 20) == 0


def test_defaults_follow_the_generator_within_5_percent_of_the_images() -> None:
    weight_of_first, settings = 1.0, EmaSettings()
    for step in range(1, 501):
        weight_of_first *= decay_at(settings, step, 64)
    assert weight_of_first < 1e-6


def test_update_against_a_loop() -> None:
    gan, other = tiny_gan(tiny_config()), tiny_gan(tiny_config("seed=1"))
    before = copy.deepcopy(gan.ema.state_dict())
    update_ema(gan.ema, other.generator, 0.75)
    parameters = {name for name, _ in gan.ema.named_parameters()}
    now, network = gan.ema.state_dict(), other.generator.state_dict()
    assert any("running" in name for name in now.keys() - parameters)
    assert any(name.endswith("_u") for name in now.keys() - parameters)
    for name, tensor in now.items():
        if name in parameters:
            expected = 0.75 * before[name] + 0.25 * network[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12, msg=name)
        else:
            assert torch.equal(tensor, network[name]), name


def test_decay_0_copies_to_the_bit() -> None:
    gan = tiny_gan(tiny_config(), dtype=torch.float32)
    with torch.no_grad():
        gan.ema.linear.bias.fill_(torch.nan)
    update_ema(gan.ema, gan.generator, 0.0)
    assert_same_state(gan.ema, gan.generator.state_dict())


@pytest.fixture(scope="module")
def trained() -> GAN:
    """A GAN whose average lags behind its generator."""
    config = tiny_config("optim.generator.lr=0.02")
    gan = tiny_gan(config, dtype=torch.float32)
    objective = Objective(LOSSES["hinge"])
    for step in range(5):
        ((_, draws),) = tiny_batches(config, 1, 4, seed=step, dtype=torch.float32)
        generator_step(gan, objective, [draws], one_process())
        update_ema(gan.ema, gan.generator, 0.5)
    return gan


def test_averaged_generator_has_largest_singular_values_1(trained: GAN) -> None:
    network = ema_generator(trained.ema)
    assert not any(parametrize.is_parametrized(module) for module in network.modules())
    weights = {
        name: module.weight
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    assert len(weights) == 15
    for name, weight in weights.items():
        assert torch.linalg.svdvals(weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3), name


def test_averaged_generator_is_the_averages_own_function(trained: GAN) -> None:
    _, draws = tiny_batches(tiny_config(), 1, 3, dtype=torch.float32)[0]
    network = ema_generator(trained.ema)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    average = copy.deepcopy(trained.ema).eval()
    for _ in range(200):
        for module in average.modules():
            if isinstance(module, parametrize.ParametrizationList):
                power_iterations([(module[0], module.original)])
    torch.testing.assert_close(network(draws.z, draws.labels), average(draws.z, draws.labels), rtol=0, atol=1e-2)
    alone = network(draws.z[:1], draws.labels[:1])
    torch.testing.assert_close(alone, network(draws.z, draws.labels)[:1], rtol=1e-4, atol=1e-5)


def test_averaged_generator_leaves_the_average_alone(trained: GAN) -> None:
    before, rng = copy.deepcopy(trained.ema.state_dict()), torch.get_rng_state()
    ema_generator(trained.ema)
    assert torch.equal(rng, torch.get_rng_state())
    assert trained.ema.training
    assert_same_state(trained.ema, before)

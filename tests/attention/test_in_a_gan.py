"""Every mechanism in both networks of a GAN: trained, averaged, saved as checkpoint and snapshot, read again."""

from pathlib import Path

import pytest
import torch
from tiny import assert_same_bits, one_process, tiny_batches, tiny_config, tiny_gan

from sagan.attention import ATTENTION, attention_options
from sagan.config.load import Config
from sagan.models.gan import GAN
from sagan.runs.checkpoint import Progress, load_checkpoint, save_checkpoint
from sagan.runs.snapshot import load_snapshot, save_snapshot
from sagan.sampling.sampler import latents
from sagan.training.ema import ema_generator, update_ema
from sagan.training.losses import LOSSES, Objective, make_objective
from sagan.training.step import discriminator_step, generator_step

PLACED = [(name, place) for name, mechanism in ATTENTION.items() for place in mechanism.places]


def config_of(name: str, place: str) -> Config:
    """The mechanism at 8×8 of both networks, in the form that acts from the first step on."""
    gain = ", gain: none" if place != "conv" and "gain" in attention_options(name) else ""
    return tiny_config(
        f"generator.attention={{8: {{name: {name}, place: {place}{gain}}}}}", "generator.channels=4",
        f"discriminator.attention={{8: {{name: {name}, place: {place}{gain}}}}}", "discriminator.channels=8",
        "discriminator.widths=[1,1,1,1]", "loss.r1=0.1",
    )  # fmt: skip


def trained(config: Config) -> GAN:
    """After one update of each network."""
    gan = tiny_gan(config, dtype=torch.float32)
    batches = tiny_batches(config, 1, 2, dtype=torch.float32)
    discriminator_step(gan, make_objective(config), batches, one_process())
    generator_step(gan, Objective(LOSSES["hinge"]), [batches[0][1]], one_process())
    update_ema(gan.ema, gan.generator, 0.5)
    return gan


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), PLACED)
def test_trains_and_survives_average_checkpoint_and_snapshot(name: str, place: str, tmp_path: Path) -> None:
    config = config_of(name, place)
    gan = trained(config)
    assert all(p.isfinite().all() for network in (gan.generator, gan.discriminator) for p in network.parameters())
    save_checkpoint(tmp_path / "00000002", gan, Progress(2))
    again = tiny_gan(config, dtype=torch.float32)
    load_checkpoint(tmp_path / "00000002", again)
    assert_same_bits(gan, again)
    average = ema_generator(gan.ema)
    save_snapshot(average, tmp_path / "snapshot")
    found = load_snapshot(tmp_path / "snapshot")
    found.memory_format = average.memory_format
    z, labels = latents([0, 1], average.z_dim), torch.tensor([1, 3])
    assert torch.equal(found(z, labels), average(z, labels))


def test_state_moves_in_its_own_network_s_update_only() -> None:
    config = config_of("em_attention", "after")
    gan, objective = trained(config), Objective(LOSSES["hinge"])
    batches = tiny_batches(config, 2, 4, dtype=torch.float32)

    def bases() -> list[torch.Tensor]:
        networks = {"attention": gan.generator, "trunk.attention": gan.discriminator}
        return [network.get_buffer(f"{at}.8x8.bases.vectors").clone() for at, network in networks.items()]

    start = bases()
    discriminator_step(gan, objective, batches, one_process())
    after_d = bases()
    assert [torch.equal(a, b) for a, b in zip(start, after_d, strict=True)] == [True, False]
    generator_step(gan, objective, [draws for _, draws in batches], one_process())
    assert [torch.equal(a, b) for a, b in zip(after_d, bases(), strict=True)] == [False, True]

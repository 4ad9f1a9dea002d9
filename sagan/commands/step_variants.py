"""The training step in the variants that `sagan bench step` compares, and its time."""

import time
from collections.abc import Callable

import torch

from sagan.adversarial import GAN, Draws, LocalEngine, Objective, Reals, discriminator_step, generator_step
from sagan.commands.bench import Variant
from sagan.config import replaced
from sagan.ema import update_average
from sagan.layers import ResamplingConv2d
from sagan.losses import LOSSES
from sagan.networks import build_discriminator, build_generator
from sagan.randomness import torch_generator
from sagan.settings import Config
from sagan.spectral_norm import hold_state

STEPS_A_ROUND = 2


def seconds_a_step(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of every variant, one number a round, the rounds interleaved after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        _timed(step, 1, device)
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_timed(step, STEPS_A_ROUND, device) / STEPS_A_ROUND)
    return seconds


def _timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def stepper(config: Config, device: torch.device, variant: Variant) -> Callable[[], None]:
    """A function that does one whole training step on fixed random inputs."""
    off = {"spectral_norm": variant.spectral_norm}
    config = replaced(config, {"generator": off, "discriminator": off})
    classes = 10 if config.data.num_classes is None else config.data.num_classes
    generator, discriminator = (
        build_generator(config, classes).to(device),
        build_discriminator(config, classes).to(device),
    )
    average = build_generator(config, classes).to(device).requires_grad_(False)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, ResamplingConv2d):
                module.folding = variant.folded
    generator.memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    optimizers = [
        torch.optim.Adam(n.parameters(), lr=s.lr, betas=s.betas, fused=True)
        for n, s in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
    ]
    gan = GAN(generator, discriminator, generator, discriminator, optimizers[0], optimizers[1], average)
    objective = Objective(LOSSES[config.loss.name], config.loss.r1, config.augment.policy)
    reals, draws = _inputs(config, classes, generator.z_dim, device, variant.channels_last)

    def step() -> None:
        for _ in range(config.d_steps):
            if variant.two_passes:
                _two_pass_discriminator_step(gan, objective, reals, draws)
            else:
                discriminator_step(gan, objective, [(reals, draws)], LocalEngine())
        generator_step(gan, objective, [draws], LocalEngine())
        update_average(average, generator, 0.999)

    return step


def _two_pass_discriminator_step(gan: GAN, objective: Objective, reals: Reals, draws: Draws) -> None:
    """The discriminator's update as SAGAN's repositories write it: one forward on reals, one on fakes."""
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    with torch.no_grad(), hold_state(gan.generator):
        fakes = gan.generator(draws.z, draws.labels)
    real_logits = gan.discriminator(reals.images, reals.labels).logits
    fake_logits = gan.discriminator(fakes, draws.labels).logits
    objective.loss.discriminator(real_logits, fake_logits).backward()
    gan.discriminator_optimizer.step()


def _inputs(config: Config, classes: int, z_dim: int, device: torch.device, channels_last: bool) -> tuple[Reals, Draws]:
    batch, size, rng = config.training.batch_size, config.data.resolution, torch_generator(0, "bench")
    images = torch.rand(batch, 3, size, size, generator=rng).mul(2).sub(1).to(device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), generator=rng).to(device) if classes else None
    z = torch.randn(batch, z_dim, generator=rng).to(device)
    augmentation = torch.rand(batch, 8, generator=rng).to(device)
    return Reals(images, labels, augmentation), Draws(z, labels, augmentation)

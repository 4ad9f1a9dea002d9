"""`sagan bench step`: the training step against its plain form, in interleaved rounds of one run."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sagan.adversarial import GAN, Draws, LocalEngine, Objective, Reals, discriminator_step, generator_step
from sagan.config import load_config
from sagan.ema import update_average
from sagan.layers import ResamplingConv2d
from sagan.losses import LOSSES
from sagan.networks import build_discriminator, build_generator
from sagan.randomness import torch_generator
from sagan.settings import Config
from sagan.spectral_norm import hold_state

STEPS_A_ROUND = 2
DEFAULT = ["discriminator.widths=[2,2,2,2]", "optim.d_steps=1", "training.batch_size=32", "data.num_classes=10"]


def bench_step_command(config_path: Path | None, overrides: list[str], rounds: int, as_json: bool) -> None:
    """Print images/s of both forms and `ratio_step` (project over plain)."""
    config = load_config(config_path, [*DEFAULT, *overrides] if config_path is None else overrides)
    device = torch.device("cuda" if torch.cuda.is_available() and config.training.device != "cpu" else "cpu")
    variants = {"plain": _stepper(config, device, plain=True), "project": _stepper(config, device, plain=False)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        _timed(step, 1, device)
    for _ in range(rounds):
        for name, step in variants.items():
            seconds[name].append(_timed(step, STEPS_A_ROUND, device) / STEPS_A_ROUND)
    batch = config.training.batch_size
    result = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "resolution": config.data.resolution,
        "batch_size": batch,
        "rounds": rounds,
        **{f"images_per_second_{name}": batch / statistics.median(times) for name, times in seconds.items()},
        **{f"spread_{name}": max(times) / min(times) - 1 for name, times in seconds.items()},
        "ratio_step": statistics.median(p / o for p, o in zip(seconds["plain"], seconds["project"], strict=True)),
    }
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")
    print("plain: two discriminator passes, convolutions unfolded, contiguous, eager", file=sys.stderr)


def _timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _stepper(config: Config, device: torch.device, plain: bool) -> Callable[[], None]:
    """A function that does one whole training step on fixed random inputs."""
    classes = 10 if config.data.num_classes is None else config.data.num_classes
    generator, discriminator = (
        build_generator(config, classes).to(device),
        build_discriminator(config, classes).to(device),
    )
    average = build_generator(config, classes).to(device).requires_grad_(False)
    if plain:
        for network in (generator, discriminator):
            _unfold(network)
    elif config.training.channels_last:
        generator.memory_format = torch.channels_last
    optimizers = [
        torch.optim.Adam(n.parameters(), lr=s.lr, betas=s.betas, fused=True)
        for n, s in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
    ]
    gan = GAN(generator, discriminator, generator, discriminator, *optimizers, average)
    objective = Objective(LOSSES[config.loss.name], config.loss.r1, config.augment.policy)
    reals, draws = _inputs(config, classes, generator.z_dim, device, plain)

    def step() -> None:
        for _ in range(config.d_steps):
            if plain:
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


def _inputs(config: Config, classes: int, z_dim: int, device: torch.device, plain: bool) -> tuple[Reals, Draws]:
    batch, size, rng = config.training.batch_size, config.data.resolution, torch_generator(0, "bench")
    images = torch.rand(batch, 3, size, size, generator=rng).mul(2).sub(1).to(device)
    if not plain and config.training.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), generator=rng).to(device) if classes else None
    z = torch.randn(batch, z_dim, generator=rng).to(device)
    augmentation = torch.rand(batch, 8, generator=rng).to(device)
    return Reals(images, labels, augmentation), Draws(z, labels, augmentation)


def _unfold(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, ResamplingConv2d):
            module.folding = False

"""The training step in the variants that `sagan bench step` compares, and its time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sagan.adversarial import GAN, Draws, LocalEngine, Objective, Reals, discriminator_step, generator_step
from sagan.commands.attention_variants import peak_mib
from sagan.commands.bench import Variant
from sagan.compilation import begin_update, compile_networks
from sagan.config import replaced
from sagan.ema import update_average
from sagan.layers import ResamplingConv2d
from sagan.losses import LOSSES
from sagan.networks import build_discriminator, build_generator
from sagan.randomness import torch_generator
from sagan.settings import Config
from sagan.spectral_norm import hold_state

STEPS_A_ROUND = 2


def seconds_a_step(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of every variant, one number a round, the rounds interleaved after a warm-up."""
    warm_up(steps, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, STEPS_A_ROUND, device) / STEPS_A_ROUND)
    return seconds


def warm_up(steps: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds of every variant's first steps, in which a compiled one is compiled: no part of what it costs to train.

    One step; on a GPU three: the second is recorded by CUDA graphs, the third replays it.
    """
    return {name: timed(step, 3 if device.type == "cuda" else 1, device) for name, step in steps.items()}


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of `count` steps, until the device has done them."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of(step: Callable[[], object], device: torch.device, compiled: bool = False) -> float | None:
    """Most MiB that a step holds beyond what was there before; None where it cannot be told (compiled on a CPU).

    By the allocator on a GPU, elsewhere by counting the tensors of torch (not what a kernel uses inside).
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return None if compiled else peak_mib(step)


def stepper(config: Config, device: torch.device, variant: Variant) -> Callable[[], dict[str, Tensor]]:
    """A function that does one whole training step on fixed random inputs; it returns d_loss and g_loss, scalars ()."""
    classes = 10 if config.data.num_classes is None else config.data.num_classes
    gan = _gan(config, classes, device, variant)
    objective = Objective(LOSSES[config.loss.name], config.loss.r1, config.augment.policy)
    reals, draws = _inputs(config, classes, gan.generator.z_dim, device, variant.channels_last)
    engine = BFloat16(device) if variant.precision == "bf16" else LocalEngine()

    def step() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with _tf32(variant.precision == "tf32"):
            for _ in range(config.d_steps):
                if variant.cuda_graphs:
                    begin_update()
                if variant.two_passes:
                    found = _two_pass_discriminator_step(gan, objective, reals, draws)
                else:
                    found = discriminator_step(gan, objective, [(reals, draws)], engine)
            found = found | generator_step(gan, objective, [draws], engine)
        update_average(gan.average, gan.generator, 0.999)
        return {name: found[name] for name in ("d_loss", "g_loss")}

    return step


def _gan(config: Config, classes: int, device: torch.device, variant: Variant) -> GAN:
    """The networks of a config as a variant computes them, and their optimisers."""
    off = {"spectral_norm": variant.spectral_norm}
    config = replaced(config, {"generator": off, "discriminator": off})
    generator = build_generator(config, classes).to(device)
    discriminator = build_discriminator(config, classes).to(device)
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
    if variant.compiled:
        compile_networks(generator, discriminator, cuda_graphs=variant.cuda_graphs)
    judge = _in_bfloat16(discriminator, device) if variant.precision == "bf16" else discriminator
    return GAN(generator, discriminator, generator, judge, optimizers[0], optimizers[1], average)


class BFloat16(LocalEngine):
    """One process, forwards under autocast to bfloat16, as Accelerate does them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16)


def _in_bfloat16(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    def forward(*arguments: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return network(*arguments)

    return forward


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round float32 factors to 10 bits: in convolutions torch lets it by itself."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _two_pass_discriminator_step(gan: GAN, objective: Objective, reals: Reals, draws: Draws) -> dict[str, Tensor]:
    """The discriminator's update as SAGAN's repositories write it: one forward on reals, one on fakes."""
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    with torch.no_grad(), hold_state(gan.generator):
        fakes = gan.generator(draws.z, draws.labels)
    real_logits = gan.discriminator(reals.images, reals.labels).logits
    fake_logits = gan.discriminator(fakes, draws.labels).logits
    loss = objective.loss.discriminator(real_logits, fake_logits)
    loss.backward()
    gan.discriminator_optimizer.step()
    return {"d_loss": loss.detach()}


def _inputs(config: Config, classes: int, z_dim: int, device: torch.device, channels_last: bool) -> tuple[Reals, Draws]:
    batch, size, rng = config.training.batch_size, config.data.resolution, torch_generator(0, "bench")
    images = torch.rand(batch, 3, size, size, generator=rng).mul(2).sub(1).to(device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), generator=rng).to(device) if classes else None
    z = torch.randn(batch, z_dim, generator=rng).to(device)
    augmentation = torch.rand(batch, 8, generator=rng).to(device)
    return Reals(images, labels, augmentation), Draws(z, labels, augmentation)

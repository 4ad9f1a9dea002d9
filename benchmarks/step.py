"""Time variants of a training step: python benchmarks/step.py [CONFIG]."""

import copy
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import click
import common
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor

from sagan.config.load import replaced
from sagan.config.schema import Config
from sagan.layers.resampling import ResamplingConv2d
from sagan.layers.spectral_norm import hold_state
from sagan.models.gan import GAN
from sagan.models.generator import build_discriminator, build_generator
from sagan.training.augment import consistency_transform
from sagan.training.ema import update_ema
from sagan.training.graphs import UpdateGraphs
from sagan.training.losses import make_objective
from sagan.training.state import begin_update, compile_networks
from sagan.training.step import LatentBatch, RealBatch, discriminator_step, generator_step
from sagan.utils.errors import UserError
from sagan.utils.random import torch_generator

STUDIO32 = ["discriminator.widths=[2,2,2,2]", "optim.d_steps=1", "training.batch_size=32", "data.num_classes=10"]
Precision = Literal["no", "tf32", "bf16"]


@dataclass(frozen=True)
class Variant:
    """A way to compute the step. `folded` and `channels_last` change rounding only."""

    separate: bool = False  # a discriminator pass each for reals, fakes and transformed reals
    folded: bool = True
    channels_last: bool = True
    spectral_norm: bool = True
    precision: Precision = "no"  # float32 throughout, without the TF32 that torch allows in convolutions
    compiled: bool = False
    cuda_graphs: bool = False  # of whole updates, or with `compiled` of the compiled parts

    @property
    def needs_cuda(self) -> bool:
        return self.precision == "tf32" or self.cuda_graphs


VARIANTS = {
    "plain": Variant(separate=True, folded=False, channels_last=False),
    "project": Variant(),
    "unfolded": Variant(folded=False),
    "without_norm": Variant(spectral_norm=False),
    "tf32": Variant(precision="tf32"),
    "bf16": Variant(precision="bf16"),
    "compiled": Variant(compiled=True),
    "cuda_graphs": Variant(cuda_graphs=True),
    "compiled_cuda_graphs": Variant(compiled=True, cuda_graphs=True),
    "bf16_cuda_graphs": Variant(precision="bf16", cuda_graphs=True),
}
TRAINED = ("project", "compiled", "cuda_graphs", "compiled_cuda_graphs")  # what a run can use in float32


class OneDevice(Accelerator):
    """One process with its own precision; Accelerate shares it among all instances."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        super().__init__(cpu=device.type == "cpu")
        self.enabled = precision == "bf16"

    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.enabled)


class TrainingStep:
    """One step of a variant on fixed random inputs, in one process."""

    def __init__(self, config: Config, device: torch.device, variant: Variant) -> None:
        self.device, self.variant, self.d_steps = device, variant, config.d_steps
        classes = 10 if config.data.num_classes is None else config.data.num_classes
        norm = {"spectral_norm": variant.spectral_norm}
        config = replaced(config, {"generator": norm, "discriminator": norm})
        generator = build_generator(config, classes).to(device)
        discriminator = build_discriminator(config, classes).to(device)
        ema = copy.deepcopy(generator).requires_grad_(False)
        for module in [*generator.modules(), *discriminator.modules()]:
            if isinstance(module, ResamplingConv2d):
                module.folding = variant.folded
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        generator.memory_format = layout
        recorded = variant.cuda_graphs and not variant.compiled
        optimizers = [
            torch.optim.Adam(network.parameters(), lr=adam.lr, betas=adam.betas, fused=True, capturable=recorded)
            for network, adam in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
        ]
        if variant.compiled:
            compile_networks(generator, discriminator, cuda_graphs=variant.cuda_graphs)
        if variant.precision == "bf16":  # as Accelerate does
            discriminator.forward = torch.autocast(device.type, torch.bfloat16)(discriminator.forward)
        self.gan = GAN(generator, discriminator, generator, discriminator, optimizers[0], optimizers[1], ema)
        self.graphs = UpdateGraphs(self.gan) if recorded else None
        self.accelerator = OneDevice(device, variant.precision)
        self.objective = make_objective(config)
        batch, size, rng = config.training.batch_size, config.data.resolution, torch_generator(0, "bench")
        images = torch.rand(batch, 3, size, size, generator=rng).mul(2).sub(1).to(device, memory_format=layout)
        labels = torch.randint(classes, (batch,), generator=rng).to(device) if classes else None
        z = torch.randn(batch, generator.z_dim, generator=rng).to(device)
        draws, transform = (torch.rand(batch, count, generator=rng).to(device) for count in (8, 3))
        self.reals = [RealBatch(images, labels, draws, transform)]
        self.latents = [LatentBatch(z, labels, draws, transform, torch.randn_like(z))]

    def __call__(self) -> dict[str, Tensor]:
        """Run one step; returns d_loss and g_loss, scalars ()."""
        found: dict[str, Tensor] = {}
        tf32 = self.variant.precision == "tf32"
        with ExitStack() as stack, torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            matmul = torch.backends.cuda.matmul
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = tf32
            for network, update in [(self.gan.discriminator, self.update_discriminator)] * self.d_steps + [
                (self.gan.generator, self.update_generator)
            ]:
                if self.variant.compiled and self.variant.cuda_graphs and network is self.gan.discriminator:
                    begin_update()
                if self.graphs is None:
                    found |= update(self.reals, self.latents)
                else:
                    found |= self.graphs.run(network, update.__name__, update, self.reals, self.latents)
        update_ema(self.gan.ema, self.gan.generator, 0.999)
        return {name: found[name] for name in ("d_loss", "g_loss")}

    def update_generator(self, reals: Sequence[RealBatch], latents: Sequence[LatentBatch]) -> dict[str, Tensor]:
        return generator_step(self.gan, self.objective, latents, self.accelerator, reals)

    def update_discriminator(self, reals: Sequence[RealBatch], latents: Sequence[LatentBatch]) -> dict[str, Tensor]:
        """The project's update, or that of public SAGAN repositories: one forward on reals, another on fakes."""
        if not self.variant.separate:
            return discriminator_step(self.gan, self.objective, [*zip(reals, latents, strict=True)], self.accelerator)
        gan, (real,), (latent,) = self.gan, reals, latents
        gan.discriminator_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), hold_state(gan.generator):
            fakes = gan.generator(latent.z, latent.labels)
        real_logits = gan.discriminator(real.images, real.labels).logits
        fake_logits = gan.discriminator(fakes, latent.labels).logits
        loss = self.objective.loss.discriminator(real_logits, fake_logits)
        if (weight := self.objective.consistency.reals) and real.transform is not None:
            other = gan.discriminator(consistency_transform(real.images, real.transform), real.labels).logits
            loss = loss + weight * (real_logits - other).square().mean()
        loss.backward()
        gan.discriminator_optimizer.step()
        return {"d_loss": loss.detach()}


@common.benchmark
@common.of_config(*STUDIO32)
@click.option("--variants", type=common.CommaSeparated(click.Choice(list(VARIANTS))), help="The first is the baseline. "
              "[default: plain,project, and compiled with a C++ compiler, cuda_graphs on a GPU]")  # fmt: skip
@common.rounds(default=5)
def main(settings: Config, variants: list[str] | None, rounds: int) -> common.Row:
    """Time a training step (default: studio32, 64 channels, batch 32) in several variants.

    plain: separate discriminator passes, convolutions unfolded, contiguous, eager. `ratio_step`: speedup over it of the
    fastest float32 variant that a run can use. `ratio_of_matmul_NAME`: its FLOP/s over that of a large matrix product
    in float32, on a GPU in bf16.
    """
    device, batch = common.pick_device(settings), settings.training.batch_size
    on_gpu = device.type == "cuda"
    if variants is None:
        compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
        variants = ["plain", "project"] + ["compiled"] * bool(on_gpu or compiler) + ["cuda_graphs"] * on_gpu
    if not on_gpu and (lost := [name for name in variants if VARIANTS[name].needs_cuda]):
        raise UserError(f"--variants: {lost[0]} needs a CUDA device; leave it out")
    steps = {name: TrainingStep(settings, device, VARIANTS[name]) for name in variants}
    multiply, operations = common.matrix_product(device, torch.bfloat16 if on_gpu else torch.float32)
    seconds, warm_up = common.interleaved({**steps, "matmul": multiply}, rounds)
    product, first = seconds.pop("matmul"), variants[0]
    result: common.Row = {
        **common.about(device), "resolution": settings.data.resolution, "batch_size": batch, "rounds": rounds,
        "gflops_matmul": operations / median(product) / 1e9, **common.rates(batch, seconds),
    }  # fmt: skip
    for name, step in steps.items():
        if name != first:
            result[f"ratio_{name}_to_{first}"] = common.ratio(seconds[first], seconds[name])
        if VARIANTS[name].compiled:
            result[f"warm_up_seconds_{name}"] = warm_up[name]
        if on_gpu or not VARIANTS[name].compiled:
            result[f"peak_mib_{name}"] = common.peak_mib(step, device)
        eager = replace(VARIANTS[name], compiled=False, cuda_graphs=False)
        same = [steps[other] for other in steps if VARIANTS[other] == eager] or [TrainingStep(settings, device, eager)]
        flops = common.flops_of(same[0])
        result[f"gflops_{name}"] = flops / median(seconds[name]) / 1e9
        result[f"ratio_of_matmul_{name}"] = common.ratio(product, seconds[name]) * flops / operations
    if trained := [value for name in TRAINED if (value := result.get(f"ratio_{name}_to_plain"))]:
        result["ratio_step"] = max(trained)
    return result


if __name__ == "__main__":
    main()

"""The generators that `sagan bench sample` and `sagan bench startup` draw from: the plain form, and the project's."""

import copy
from pathlib import Path

import torch

from sagan.config import load_config
from sagan.layers import ResamplingConv2d
from sagan.networks import Generator, bake, build_generator
from sagan.normalization import Normalization
from sagan.randomness import torch_generator
from sagan.settings import Config
from sagan.snapshot import load_snapshot
from sagan.spectral_norm import spectral_normalize

STUDIO32 = [  # configs/studio32.yaml, as far as it concerns the generator
    "data.num_classes=10", "generator.init=orthogonal", "generator.class_norm=linear", "generator.norm_eps=1.0e-4",
    "generator.spectral_norm_eps=1.0e-6",
]  # fmt: skip
CLASSES, CALIBRATION_BATCH = 10, 32


def generator_of(source: str | None) -> Generator:
    """A normalised generator in eval mode: of a snapshot or a run, of a config (.yaml, a file), or of studio32.

    That of a config has random weights and the statistics of one batch. UserError for a bad source.
    """
    if source is not None and not (source.endswith((".yaml", ".yml")) or Path(source).is_file()):
        generator = load_snapshot(source)
        spectral_normalize(generator, generator.settings.spectral_norm_eps)
        return generator.eval().requires_grad_(False)
    return random_generator(load_config(None, STUDIO32) if source is None else load_config(Path(source)))


@torch.no_grad()
def random_generator(config: Config) -> Generator:
    """As a config builds it, its batch norm with the statistics of one batch, so that images are not all grey."""
    classes = CLASSES if config.data.num_classes is None else config.data.num_classes
    generator = build_generator(config, classes).requires_grad_(False)
    norms = [module for module in generator.modules() if isinstance(module, Normalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    z = torch.randn(CALIBRATION_BATCH, generator.z_dim, generator=torch_generator(0, "bench"))
    generator.train()(z, torch.arange(CALIBRATION_BATCH) % classes if classes else None)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return generator.eval()


def plain_form(generator: Generator) -> Generator:
    """A copy that computes spectral norm in every forward, its convolutions unfolded, contiguous."""
    plain = copy.deepcopy(generator)
    plain.memory_format = torch.contiguous_format
    for module in plain.modules():
        if isinstance(module, ResamplingConv2d):
            module.folding = False
    return plain


def project_form(generator: Generator) -> Generator:
    """What a snapshot of it gives: spectral norm baked in, channels last; `generate` takes its drawing form."""
    baked = bake(generator)
    baked.memory_format = torch.channels_last
    return baked

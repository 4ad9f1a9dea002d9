"""The networks of a checkpoint: averaged or raw weights, running or standing batch-norm statistics, discriminator."""

import copy
from pathlib import Path

import torch

from sagan.checkpoint import verify_checkpoint
from sagan.config import load_config
from sagan.discriminator import Discriminator
from sagan.errors import UserError
from sagan.files import read_json
from sagan.networks import Generator, bake, build_discriminator, build_generator
from sagan.normalization import HeldState, Normalization
from sagan.pretrained import load_exactly, read_tensors
from sagan.randomness import torch_generator
from sagan.settings import Config
from sagan.spectral_norm import SpectralNorm, refresh_spectral_norm

WEIGHTS = {"averaged": "average", "raw": "generator"}  # by the names of a checkpoint's files
STANDING_BATCHES, STANDING_BATCH = 64, 64


def load_generators(checkpoint: Path) -> dict[str, Generator]:
    """The "averaged" and the "raw" generator of a checkpoint of a run, as a snapshot would hold them.

    UserError when the checkpoint is damaged or does not lie in a run.
    """
    verify_checkpoint(checkpoint)
    config, classes, names = _of_run(checkpoint)
    found = {}
    for kind, file in WEIGHTS.items():
        generator = build_generator(config, classes, names)
        load_exactly(generator, read_tensors(checkpoint / f"{file}.safetensors"), f"{checkpoint}/{file}")
        refresh_spectral_norm(generator)
        generator.memory_format = torch.channels_last
        found[kind] = bake(generator)
    return found


def load_discriminator(checkpoint: Path) -> Discriminator:
    """The discriminator of a checkpoint of a run, in eval mode. UserError as for `load_generators`."""
    verify_checkpoint(checkpoint)
    config, classes, _ = _of_run(checkpoint)
    discriminator = build_discriminator(config, classes)
    state = read_tensors(checkpoint / "discriminator.safetensors")
    load_exactly(discriminator, state, f"{checkpoint}/discriminator")
    return discriminator.eval().requires_grad_(False)


def _of_run(checkpoint: Path) -> tuple[Config, int, tuple[str, ...]]:
    """Config, number of classes and their names of the run in which a checkpoint lies."""
    run = checkpoint.resolve().parent.parent
    config = load_config(run / "config.yaml")
    about = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    if config.data.num_classes is None:
        raise UserError(f"{run / 'config.yaml'}: says nothing of data.num_classes, so it is not that of a run")
    if not isinstance(about, dict):
        raise UserError(f"{run / 'run.json'}: not the record of a run; restore it, or remove it")
    return config, config.data.num_classes, tuple(about.get("class_names", ())) if config.data.num_classes else ()


@torch.no_grad()
def with_standing_statistics(generator: Generator) -> Generator:
    """A copy whose batch-norm statistics are means over 64 batches of 64 samples (BigGAN, arXiv:1809.11096)."""
    network = copy.deepcopy(generator).train()
    device = next(network.parameters()).device
    rng = torch_generator(0, "standing statistics")
    norms = [module for module in network.modules() if isinstance(module, Normalization)]
    for module in network.modules():
        if isinstance(module, HeldState) and not isinstance(module, Normalization | SpectralNorm):
            module.held = True  # bases are not statistics of samples
    labels = torch.arange(STANDING_BATCH)
    for batch in range(STANDING_BATCHES):
        for norm in norms:
            norm.momentum = 1 / (batch + 1)  # a plain mean of the batches
        z = torch.randn(STANDING_BATCH, network.z_dim, generator=rng)
        drawn = (labels + batch * STANDING_BATCH) % network.num_classes if network.num_classes else None
        network(z.to(device), None if drawn is None else drawn.to(device))
    for norm, original in zip(norms, (m for m in generator.modules() if isinstance(m, Normalization)), strict=True):
        norm.momentum = original.momentum
    return network.eval()

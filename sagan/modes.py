"""What a trained generator can be used as: averaged or raw weights, running or standing batch-norm statistics."""

import copy
from pathlib import Path

import torch

from sagan.checkpoint import verify_checkpoint
from sagan.config import load_config
from sagan.errors import UserError
from sagan.files import read_json
from sagan.layers import Normalization
from sagan.networks import Generator, bake, build_generator
from sagan.pretrained import load_exactly, read_tensors
from sagan.randomness import torch_generator
from sagan.spectral_norm import refresh_spectral_norm

WEIGHTS = {"averaged": "average", "raw": "generator"}  # by the names of a checkpoint's files
STANDING_BATCHES, STANDING_BATCH = 64, 64


def load_generators(checkpoint: Path) -> dict[str, Generator]:
    """The "averaged" and the "raw" generator of a checkpoint of a run, as a snapshot would hold them.

    UserError when the checkpoint is damaged or does not lie in a run.
    """
    verify_checkpoint(checkpoint)
    run = checkpoint.parent.parent
    config = load_config(run / "config.yaml")
    about = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    classes = config.data.num_classes
    if classes is None:
        raise UserError(f"{run / 'config.yaml'}: says nothing of data.num_classes, so it is not that of a run")
    names = tuple(about.get("class_names", ())) if classes else ()
    found = {}
    for kind, file in WEIGHTS.items():
        generator = build_generator(config, classes, names)
        load_exactly(generator, read_tensors(checkpoint / f"{file}.safetensors"), f"{checkpoint}/{file}")
        refresh_spectral_norm(generator)
        generator.memory_format = torch.channels_last
        found[kind] = bake(generator)
    return found


@torch.no_grad()
def with_standing_statistics(generator: Generator) -> Generator:
    """A copy whose batch-norm statistics are means over 64 batches of 64 samples (BigGAN, arXiv:1809.11096)."""
    network = copy.deepcopy(generator).train()
    device = next(network.parameters()).device
    rng = torch_generator(0, "standing statistics")
    norms = [module for module in network.modules() if isinstance(module, Normalization)]
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

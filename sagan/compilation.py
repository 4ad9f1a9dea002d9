"""torch.compile of a GAN's networks, and CUDA graphs of what it makes of them."""

import torch
from torch import nn


def compile_networks(*networks: nn.Module, cuda_graphs: bool = False) -> None:
    """Compile each network's forward, and with it its backward, in place and at its first call.

    `cuda_graphs`: what is compiled is recorded and replayed by one launch each; without effect off CUDA. Then results
    stay in memory that the next replay overwrites: call `begin_update` before each discriminator update.
    """
    for network in networks:
        network.compile(dynamic=False, mode="reduce-overhead" if cuda_graphs else None)


def begin_update() -> None:
    """What CUDA graphs gave until now (gradients, too) is no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()

"""The networks and optimizers of a training run."""

from dataclasses import dataclass

import torch
from torch import nn

from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator


@dataclass
class GAN:
    """The networks of a run. `ddp_*`: the same networks as wrapped for gradients over processes. `ema`: averaged."""

    generator: Generator
    discriminator: Discriminator
    ddp_generator: nn.Module
    ddp_discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    ema: Generator

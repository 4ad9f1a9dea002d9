"""The averaged generator: an exponential moving average of the weights (Karras et al. 2018; 2024, for the ramp).

torch's AveragedModel reads its counter on the host in every update, which stalls a GPU; hence this implementation.
"""

import copy

import torch
import torch.distributed as dist
from torch import nn

from sagan.config.schema import EmaSettings
from sagan.layers.normalization import Normalization
from sagan.layers.spectral_norm import refresh_spectral_norm
from sagan.models.generator import Generator, remove_spectral_norm


def decay_at(settings: EmaSettings, step: int, batch_size: int) -> float:
    """Decay of the update after generator step `step`; 0 (a plain copy) before `start`.

    The half-life, in images, is at most `ramp` times the images seen.
    """
    if step < settings.start:
        return 0.0
    if settings.half_life is None:
        return settings.decay or 0.0
    half_life = settings.half_life
    if settings.ramp is not None:
        half_life = min(half_life, settings.ramp * step * batch_size)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay · average + (1 - decay) · network for parameters; copies buffers."""
    mine, theirs = tuple(average.parameters()), tuple(network.parameters())
    copy_all, lerp_all = torch._foreach_copy_, torch._foreach_lerp_  # type: ignore[attr-defined]
    if decay == 0:
        copy_all(mine, theirs)
    else:
        lerp_all(mine, theirs, 1 - decay)
    copy_all(tuple(average.buffers()), tuple(network.buffers()))


@torch.no_grad()
def ema_generator(average: Generator) -> Generator:
    """A copy for inference: statistics averaged over processes, spectral norm refreshed and folded into the weights.

    Samples, evaluation and snapshots all use this copy. Every process must call it.
    """
    network = copy.deepcopy(average)
    average_statistics(network)
    refresh_spectral_norm(network)
    return remove_spectral_norm(network)


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Replace batch-norm statistics by their mean over processes, in place. Training-mode forwards ignore them."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for module in network.modules():
            if isinstance(module, Normalization):
                for statistic in (module.running_mean, module.running_var):
                    dist.all_reduce(statistic)
                    statistic /= dist.get_world_size()

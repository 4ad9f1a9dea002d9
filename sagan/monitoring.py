"""What a run measures of itself where it logs. Draws nothing at random and moves no state."""

import resource

import torch
from torch import Tensor, nn

from sagan.adversarial import GAN, Draws
from sagan.attention import record_attention
from sagan.inspection.health import attention_health, module_gammas
from sagan.inspection.points import grid_points
from sagan.settings import TrainingSettings
from sagan.spectral_norm import hold_state, singular_values

POINTS = 16
LOGGED = ("entropy", "distance", "far_mass")


def measure(gan: GAN, values: dict[str, Tensor], draws: Draws) -> dict[str, float]:
    """Everything that is logged: the step's `values`, gradient norms, attention, singular values, memory (MiB).

    Attention is that of the training generator on `draws`, as a forward in training would compute it.
    """
    measured: dict[str, Tensor | float] = dict(values)
    for name, network in (("g", gan.generator), ("d", gan.discriminator)):
        measured[f"{name}_gradient_norm"] = _gradient_norm(network)
        measured |= {f"{name}_sigma/{weight}": sigma for weight, sigma in singular_values(network).items()}
        measured |= {f"{name}_gamma/{module}": gamma for module, gamma in module_gammas(network).items()}
    points = grid_points(POINTS)
    with torch.no_grad(), hold_state(gan.generator), record_attention(gan.generator, points) as maps:
        gan.generator(draws.z[:8], None if draws.labels is None else draws.labels[:8])
    for module, health in attention_health(gan.generator, maps, points).items():
        measured |= {f"g_{name}/{module}": health[name] for name in LOGGED if name in health}
    measured["memory_mib"] = memory_mib(next(gan.generator.parameters()).device)
    return {name: float(value) for name, value in measured.items()}


def attention_warning(step: int, settings: TrainingSettings, measured: dict[str, float]) -> str | None:
    """One line, once, when the gain of an attention module is still at 0 after a quarter of the run."""
    window = range(settings.steps // 4, settings.steps // 4 + settings.log_every)
    unused = [n for n, gamma in measured.items() if "_gamma/" in n and abs(gamma) < 1e-3]
    if step in window and unused:
        return f"attention unused: {', '.join(unused)} still at 0 after {step} steps (a larger learning rate moves it)"
    return None


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _gradient_norm(network: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])

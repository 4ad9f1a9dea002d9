"""What a run measures of itself where it logs. Draws nothing at random and moves no state."""

import resource

import torch
from torch import Tensor, nn

from sagan.adversarial import GAN, Draws
from sagan.attention import AttentionModule, record_attention
from sagan.inspection.health import attention_health, module_gammas
from sagan.inspection.points import grid_points
from sagan.memory import peak_resident_mib
from sagan.settings import Config, TrainingSettings
from sagan.spectral_norm import hold_state, singular_values

POINTS, IMAGES = 16, 8
FEWEST_STEPS = 100  # before that a gain has had no time to move
HELD = 2**30  # bytes
LOGGED = ("entropy", "distance", "far_mass")


def measure(gan: GAN, values: dict[str, Tensor], draws: Draws) -> dict[str, float]:
    """Everything that is logged: the step's `values`, gradient norms, attention, singular values, memory (MiB).

    Attention is that of the training networks on `draws`.
    """
    measured: dict[str, Tensor | float] = dict(values)
    for name, network in (("g", gan.generator), ("d", gan.discriminator)):
        measured[f"{name}_gradient_norm"] = _gradient_norm(network)
        measured |= {f"{name}_sigma/{weight}": sigma for weight, sigma in singular_values(network).items()}
        measured |= {f"{name}_gamma/{module}": gamma for module, gamma in module_gammas(network).items()}
    measured |= _attention(gan, draws)
    measured["memory_mib"] = memory_mib(next(gan.generator.parameters()).device)
    return {name: float(value) for name, value in measured.items()}


@torch.no_grad()
def _attention(gan: GAN, draws: Draws) -> dict[str, float]:
    """Entropy, distance and far mass of every map of both networks, on a few fakes of the training generator."""
    points = grid_points(POINTS)
    labels = None if draws.labels is None else draws.labels[:IMAGES]
    measured = {}
    eager = torch.compiler.set_stance("force_eager")  # a compiled step knows no listener
    with eager, hold_state(gan.generator), hold_state(gan.discriminator):
        with record_attention(gan.generator, points) as g_maps:
            fakes = gan.generator(draws.z[:IMAGES], labels)
        with record_attention(gan.discriminator, points) as d_maps:
            gan.discriminator(fakes, labels)
    for player, network, maps in (("g", gan.generator, g_maps), ("d", gan.discriminator, d_maps)):
        for module, health in attention_health(network, maps, points).items():
            measured |= {f"{player}_{name}/{module}": health[name] for name in LOGGED if name in health}
    return measured


def attention_warning(step: int, settings: TrainingSettings, measured: dict[str, float]) -> str | None:
    """One line, once, when the gain of an attention module is still at 0 after a quarter of the run."""
    begin = max(settings.steps // 4, FEWEST_STEPS)
    window = range(begin, begin + settings.log_every)
    unused = [n for n, gamma in measured.items() if "_gamma/" in n and abs(gamma) < 1e-3]
    if step in window and unused:
        return f"attention unused: {', '.join(unused)} still at 0 after {step} steps (a larger learning rate moves it)"
    return None


def quadratic_warnings(config: Config, generator: nn.Module, discriminator: nn.Module, processes: int) -> list[str]:
    """One line for each mechanism whose query-key weights would take more than HELD bytes if they were held.

    A fused kernel holds none of them; under R1, in the discriminator, none is used.
    """
    images = config.training.batch_size // (config.optim.accumulation * processes)
    said = []
    for player, network, count in (("generator", generator, images), ("discriminator", discriminator, 2 * images)):
        for name, module in network.named_modules():
            if not isinstance(module, AttentionModule):
                continue
            size = 4 * count * module.pairs(*module.resolution)
            if size > HELD:
                unfused = player == "discriminator" and config.loss.r1 > 0
                how = "R1 holds them, several times over" if unfused else "held wherever no fused kernel runs"
                said.append(
                    f"{player} {name}: every cell of {module.resolution[0]}x{module.resolution[1]} is compared with "
                    f"every key, {size / 2**30:.1f} GiB of weights for {count} images ({how}); linear in the cells are "
                    "double_attention, em_attention and non_local with form dot_product or concatenation"
                )
    return said


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_mib(resource.getrusage(resource.RUSAGE_SELF))


def _gradient_norm(network: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])

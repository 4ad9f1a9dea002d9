"""What attention does to the images: the same seeds with and without it, and maps beside those of a random network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sagan.images import name_rows, sheet
from sagan.inspection.health import attention_modules
from sagan.inspection.maps import Recording, attention_of
from sagan.layers import initialize
from sagan.networks import Generator, bake
from sagan.randomness import key
from sagan.sampling import generate
from sagan.spectral_norm import refresh_spectral_norm, spectral_normalize

AMPLIFIED = 4  # times; differences of a few grey levels are invisible


@dataclass(frozen=True, eq=False)
class Ablation:
    """Images uint8 (B, H, W, 3) of the same z and labels, with every attention module and with all their gains at 0."""

    with_attention: np.ndarray
    without: np.ndarray

    @property
    def change(self) -> float:
        """Mean absolute difference, in grey levels of 255."""
        return float(np.abs(self.with_attention.astype(int) - self.without).mean())

    def picture(self) -> np.ndarray:
        """Rows: with attention, without, and the difference, amplified around grey."""
        difference = AMPLIFIED * (self.with_attention.astype(int) - self.without) + 128
        rows = [self.with_attention, self.without, difference.clip(0, 255).astype(np.uint8)]
        scale = max(1, 128 // self.without.shape[1])
        picture = sheet(np.concatenate(rows), len(self.without), scale=scale)
        return name_rows(picture, ["with attention", "without", f"difference x{AMPLIFIED}"])


def ablate(generator: Generator, z: Tensor, labels: Tensor | None) -> Ablation:
    """Draw z (B, z_dim) and labels (B,) with attention and without; the network stays as it is.

    Only modules with a gain `gamma` can be switched off; the others go on.
    """
    device = next(generator.parameters()).device
    with_attention = torch.cat(list(generate(generator, z, labels, device))).numpy()
    with attention_off(generator):
        without = torch.cat(list(generate(generator, z, labels, device))).numpy()
    return Ablation(with_attention, without)


@contextmanager
def attention_off(network: nn.Module, names: Sequence[str] | None = None) -> Iterator[None]:
    """Inside, the gains of the attention modules (of those with these `names`) are 0: each passes its input on."""
    modules = {name: m for name, m in attention_modules(network).items() if names is None or name in names}
    gains = [gain for module in modules.values() for gain in module.gains().values()]
    saved = [(gain, gain.detach().clone()) for gain in gains]
    with torch.no_grad():
        for gain, _ in saved:
            gain.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for gain, value in saved:
                gain.copy_(value)


def untrained(generator: Generator) -> Generator:
    """A generator of the same settings with random weights, in eval mode: what maps look like before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(0, "untrained"))
        random = Generator(generator.settings, generator.resolution, generator.num_classes, generator.class_names)
        initialize(random, generator.settings.init)
        if generator.settings.spectral_norm:
            spectral_normalize(random, generator.settings.spectral_norm_eps)
    refresh_spectral_norm(random)
    random.memory_format = generator.memory_format
    return bake(random).to(next(generator.parameters()).device)


def agreement_with_untrained(
    generator: Generator, recording: Recording, z: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """For each map of softmax rows, 1 - Σ|p - q| / 2 with q the untrained generator's row of the point: 1 is equal.

    A high value says that a map shows the architecture and where the point lies rather than what was learnt.
    """
    other = attention_of(untrained(generator), z, labels, recording.seeds.tolist(), recording.points)
    return {
        name: 1 - _total_variation(found.weights, other.maps[name].weights)
        for name, found in recording.maps.items()
        if found.kind == "softmax row"
    }


def _total_variation(p: Tensor, q: Tensor) -> float:
    return (p.double() - q.double()).abs().sum((-2, -1)).mean().item() / 2

"""A small generator as a snapshot holds it, whose images differ by seed and class and fill the range of grey."""

import torch

from sagan.config.load import load_config
from sagan.models.generator import Generator, build_generator, remove_spectral_norm

NAMES = ("disc", "ring", "star", "bar")


def small_generator(*settings: str, num_classes: int = 4, channels: int = 8) -> Generator:
    """4 named classes at 32 px by default; `settings` as `--set` takes them."""
    config = load_config(None, [f"generator.channels={channels}", *settings])
    generator = remove_spectral_norm(build_generator(config, num_classes, NAMES[:num_classes]))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=rng) / fan_in**0.5)
        for name, buffer in generator.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5, generator=rng)
    return generator

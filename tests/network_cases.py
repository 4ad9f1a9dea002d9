"""Small pairs of networks that between them use every form of block, norm, attention and head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sagan.config.load import Config, load_config
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator, build_discriminator, build_generator

Inputs = tuple[Tensor, Tensor | None]  # z or images, labels


@dataclass(frozen=True)
class Case:
    """Settings of a pair of networks, as `--set` takes them."""

    name: str
    num_classes: int
    settings: tuple[str, ...]

    @property
    def config(self) -> Config:
        return load_config(None, list(self.settings))


STUDIO = (
    "generator.class_norm=linear",
    "generator.norm_eps=1.0e-4",
    "generator.init=orthogonal",
    "generator.spectral_norm_eps=1.0e-6",
    "discriminator.init=orthogonal",
    "discriminator.spectral_norm_eps=1.0e-6",
    "discriminator.relu_shortcut=true",
)
BIGGAN = ("generator.class_norm=shared", "generator.shared_dim=5")
SMALL = ("generator.channels=4", "generator.attention={}", "discriminator.channels=4", "discriminator.attention={}")
CASES = [
    Case("classes-32", 3, (
        "generator.channels=6", "generator.attention={8: self_attention, 32: self_attention}",
        "discriminator.channels=6", "discriminator.attention={16: self_attention, 8: self_attention}",
    )),
    Case("no-classes-32", 0, (
        "generator.channels=4", "generator.norm_momentum=0.3",
        "discriminator.channels=8", "discriminator.widths=[1, 2, 2, 3]",
    )),
    Case("studio-32", 4, (
        *STUDIO, "generator.channels=4", "discriminator.channels=4", "discriminator.widths=[2, 2, 2, 2]",
    )),
    Case("classes-64", 2, (
        "data.resolution=64", "generator.channels=4", "generator.attention={8: self_attention, 16: self_attention}",
        "discriminator.channels=4", "discriminator.attention={16: self_attention, 4: self_attention}",
    )),
    Case("studio-64", 3, (
        *STUDIO, "data.resolution=64", "generator.channels=4", "generator.attention={16: self_attention}",
        "discriminator.channels=8", "discriminator.attention={16: self_attention}",
    )),
    Case("official-128", 5, (
        "data.resolution=128", "generator.norm_momentum=0.001", "generator.last_norm_momentum=0.0001",
        "generator.channels=4", "generator.attention={16: self_attention}",
        "discriminator.channels=4", "discriminator.attention={16: self_attention}",
    )),
    Case("biggan-32", 3, (
        *BIGGAN, *SMALL, "generator.hierarchical=true", "generator.z_dim=12", "generator.init=orthogonal",
    )),
    Case("shared-32", 4, (*BIGGAN, *SMALL)),
    Case("hierarchical-no-classes-32", 0, (
        *SMALL, "data.num_classes=0", "generator.hierarchical=true", "generator.z_dim=8",
    )),
    Case("bare-32", 2, (
        *SMALL, "generator.spectral_norm=false", "discriminator.spectral_norm=false",
    )),
]  # fmt: skip
LARGE = Case("no-classes-256", 0, (
    "data.resolution=256", "generator.channels=4", "generator.attention={32: self_attention}",
    "discriminator.channels=4", "discriminator.attention={32: self_attention}",
))  # fmt: skip


def generator_of(case: Case) -> tuple[Generator, Inputs]:
    """A generator in float64, none of its parameters at its initial value, and inputs for it."""
    generator = build_generator(case.config, case.num_classes).double()
    return scatter(generator), (draw(3, generator.z_dim), labels_of(case))


def discriminator_of(case: Case) -> tuple[Discriminator, Inputs]:
    """A discriminator in float64, none of its parameters at its initial value, and inputs for it."""
    discriminator = build_discriminator(case.config, case.num_classes).double()
    resolution = case.config.data.resolution
    return scatter(discriminator), (draw(3, 3, resolution, resolution), labels_of(case))


def output_of(network: nn.Module, inputs: Inputs) -> Tensor:
    """Images or logits."""
    result = network(*inputs)
    return result if isinstance(network, Generator) else result.logits


def scatter(network: nn.Module) -> nn.Module:
    """Move every parameter and statistic, so that none is 0 or 1 and no weight fits its spectral-norm vectors."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return network


def draw(*shape: int) -> Tensor:
    """Normal numbers that take a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


def labels_of(case: Case) -> Tensor | None:
    return torch.tensor([1, 0, 1]) if case.num_classes else None

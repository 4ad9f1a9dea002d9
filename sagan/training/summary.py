"""`sagan train --dry-run`: the resolved config, layers with shapes and parameters, attention, images per step."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sagan.attention import AttentionModule
from sagan.config.load import load_config, replaced
from sagan.config.schema import Config, NetworkSettings
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.sources import open_source
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator

ASSUMED_CLASSES = 10


def describe_command(config_path: Path, overrides: list[str]) -> int:
    """Print what `sagan train` would do. Networks take no memory, and only the classes of the data are read."""
    config = load_config(config_path, overrides)
    classes = _num_classes(config)
    config = replaced(config, {"data": {"num_classes": classes}})
    config = replaced(config, {"optim": {"d_steps": config.d_steps}})
    print(config.to_yaml())
    console = Console(width=100 if not sys.stdout.isatty() else None)
    generator, discriminator = layer_tables(config, classes)
    console.print(_table("Generator", generator), _table("Discriminator", discriminator), sep="\n")
    for name, settings in (("generator", config.generator), ("discriminator", config.discriminator)):
        print(f"attention in the {name}: {_attention(settings)}")
    batch, d_steps, steps = config.training.batch_size, config.d_steps, config.training.steps
    print(
        f"one step: {d_steps} discriminator and 1 generator update of {batch} images; "
        f"{steps} steps see {steps * batch * d_steps:,} real images"
    )
    return 0


def _num_classes(config: Config) -> int:
    if config.data.num_classes is not None:
        return config.data.num_classes
    if config.data.source is None:
        print(f"data.source is not set; assuming {ASSUMED_CLASSES} classes", file=sys.stderr)
        return ASSUMED_CLASSES
    if is_prepared(config.data.source):
        return PreparedData.open(config.data.source).manifest.num_classes
    source, data = config.data.source, config.data
    return open_source(source, data.resolution, data.labels, data.columns).num_classes


def _table(title: str, layers: "list[Layer]") -> Table:
    """One row per layer, in the order of the forward; an attention module is one layer."""
    table = Table(title=f"{title}: {sum(layer.parameters for layer in layers):,} parameters")
    for column, justify in (("layer", "left"), ("kind", "left"), ("output", "right"), ("parameters", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for layer in layers:
        table.add_row(layer.name, layer.kind, " × ".join(map(str, layer.shape)) or "1", f"{layer.parameters:,}")
    return table


def _attention(settings: NetworkSettings) -> str:
    placed = [f"{a.name} at {size}x{size} ({a.place})" for size, a in sorted(settings.attention.items())]
    return ", ".join(placed) or "none"


@dataclass(frozen=True)
class Layer:
    """`shape`: of the output, without the batch dimension. `parameters`: number of parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def layer_tables(config: Config, classes: int) -> tuple[list[Layer], list[Layer]]:
    """Layers of the generator and of the discriminator, from a forward on the meta device."""
    side, channels = config.data.resolution, config.data.channels
    with torch.device("meta"):
        labels = torch.zeros(2, dtype=torch.long) if classes else None
        z, images = torch.empty(2, config.generator.z_dim), torch.empty(2, channels, side, side)
        return (
            layers(Generator(config.generator, side, classes, (), channels), z, labels),
            layers(Discriminator(config.discriminator, side, classes, channels), images, labels),
        )


def layers(network: nn.Module, *inputs: Tensor | None) -> list[Layer]:
    """Every layer with parameters in the order of the forward. An attention module counts as one layer."""
    found: dict[str, Layer] = {}

    def record(module: nn.Module, output: Tensor, name: str) -> None:
        parameters = sum(p.numel() for p in module.parameters(recurse=isinstance(module, AttentionModule)))
        found.setdefault(name, Layer(name, type(module).__name__, (*output.shape[1:],), parameters))

    inside = [name for name, module in network.named_modules() if isinstance(module, AttentionModule)]
    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: record(module, output, name))
        for name, module in network.named_modules()
        if name in inside or (module._parameters and not any(name.startswith(f"{each}.") for each in inside))
    ]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return list(found.values())

"""`sagan train --dry-run`: the resolved config, layers with shapes and parameters, attention, images a step."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sagan.config import load_config, replaced
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.sources import open_source
from sagan.settings import Config, NetworkSettings

if TYPE_CHECKING:
    from sagan.commands.layer_table import Layer

ASSUMED_CLASSES = 10


def describe_command(config_path: Path, overrides: list[str]) -> int:
    """Print what `sagan train` would do. Networks take no memory; of the data only its classes are read."""
    config = load_config(config_path, overrides)
    classes = _num_classes(config)
    config = replaced(config, {"data": {"num_classes": classes}})
    config = replaced(config, {"optim": {"d_steps": config.d_steps}})
    from sagan.commands.layer_table import tables

    of = tables(config, classes)
    print(config.to_yaml())
    console = Console(width=100 if not sys.stdout.isatty() else None)
    console.print(_table("Generator", of.generator), _table("Discriminator", of.judging), sep="\n")
    for name, settings in (("generator", config.generator), ("discriminator", config.discriminator)):
        print(f"attention in the {name}: {_attention(settings)}")
    batch, d_steps, steps = config.training.batch_size, config.d_steps, config.training.steps
    print(
        f"a step: {d_steps} discriminator and 1 generator update of {batch} images, {batch * d_steps} real images in "
        f"all; {steps} steps see {steps * batch * d_steps:,} real images"
    )
    return 0


def _num_classes(config: Config) -> int:
    if config.data.num_classes is not None:
        return config.data.num_classes
    if config.data.source is None:
        print(f"data.source is not set: {ASSUMED_CLASSES} classes assumed", file=sys.stderr)
        return ASSUMED_CLASSES
    if is_prepared(config.data.source):
        return PreparedData.open(config.data.source).manifest.num_classes
    return open_source(config.data.source, config.data.resolution).num_classes


def _table(title: str, layers: "list[Layer]") -> Table:
    """One row a layer, in the order of the forward; an attention mechanism is one."""
    table = Table(title=f"{title}: {sum(layer.parameters for layer in layers):,} parameters")
    for column, justify in (("layer", "left"), ("kind", "left"), ("output", "right"), ("parameters", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for layer in layers:
        table.add_row(layer.name, layer.kind, " × ".join(map(str, layer.shape)) or "1", f"{layer.parameters:,}")
    return table


def _attention(settings: NetworkSettings) -> str:
    placed = [f"{a.name} at {size}x{size} ({a.place})" for size, a in sorted(settings.attention.items())]
    return ", ".join(placed) or "none"

"""Multiply-adds of every layer by formula, from a forward without memory or arithmetic.

Convolutions and matrix products of layers and attention, as torch's FLOP counter counts them (half its number); not
what spectral norm, normalisation, optimisers and the enlarging of a zoom's parts do.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sagan.attention import AttentionModule
from sagan.commands.bench_result import aligned
from sagan.discriminator import Discriminator
from sagan.layers import ResamplingConv2d, UpsampleConv2d
from sagan.networks import Generator
from sagan.settings import Config


@dataclass(frozen=True)
class Layer:
    """`shape`: of its output without the batch. `macs`: of a forward of the whole batch; a layer that runs twice counts
    twice. `led_to`: whether backward needs the gradient of its input."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    led_to: bool


@dataclass(frozen=True)
class Tables:
    """Layers of the generator on a batch, of the discriminator on as many images (`judging`), as in the generator's
    update, and on twice as many, reals and fakes (`learning`), as in its own."""

    generator: list[Layer]
    judging: list[Layer]
    learning: list[Layer]


def tables(config: Config, classes: int, folded: bool = True) -> Tables:
    """Of the networks and batch of a config."""
    batch, side = config.training.batch_size, config.data.resolution
    with torch.device("meta"):
        generator = Generator(config.generator, side, classes)
        discriminator = Discriminator(config.discriminator, side, classes)
        for network in (generator, discriminator):
            for module in network.modules():
                if isinstance(module, ResamplingConv2d):
                    module.folding = folded
        z, images = torch.empty(batch, config.generator.z_dim), torch.empty(2 * batch, 3, side, side)
        labels = torch.zeros(2 * batch, dtype=torch.long) if classes else None
        half = None if labels is None else labels[:batch]
        return Tables(
            layers(generator, z, half),
            layers(discriminator, images[:batch].requires_grad_(), half),
            layers(discriminator, images, labels, torch.zeros(2 * batch, dtype=torch.bool)),
        )


def layers(network: nn.Module, *inputs: Tensor | None) -> list[Layer]:
    """Every layer with parameters in the order of the forward; an attention mechanism is one."""
    found: dict[str, Layer] = {}
    with _noted(network, found):
        network(*inputs)
    return list(found.values())


def step_macs(config: Config, of: Tables) -> int:
    """Of a whole training step, R1 apart. Backward costs a layer as much as forward for each gradient: of its weights
    and, where something before it learns, of its input. (A fused attention kernel takes a little more.)
    """
    forward_g, forward_d, twice_d = (total(table) for table in (of.generator, of.judging, of.learning))
    learning = forward_g + 3 * twice_d - _not_led_to(of.learning)
    drawing = 3 * forward_g - _not_led_to(of.generator) + 2 * forward_d  # the discriminator passes gradients on
    if config.training.activation_checkpointing:
        learning += _in_blocks(of.learning)
        drawing += _in_blocks(of.generator) + _in_blocks(of.judging)
    return config.d_steps * learning + drawing


def total(table: list[Layer]) -> int:
    return sum(layer.macs for layer in table)


def _not_led_to(table: list[Layer]) -> int:
    return sum(layer.macs for layer in table if not layer.led_to)


def _in_blocks(table: list[Layer]) -> int:
    return sum(layer.macs for layer in table if "blocks." in layer.name or "attention." in layer.name)


@contextmanager
def _noted(network: nn.Module, found: dict[str, Layer]) -> Iterator[None]:
    """Inside, every forward of a layer is added to `found`."""
    hooks = []
    for name, module in _rows(network):

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            macs, parameters = _macs(module, inputs[0]), _parameters(module)
            layer = Layer(name, type(module).__name__, (*output.shape[1:],), parameters, macs, inputs[0].requires_grad)
            found[name] = replace(layer, macs=macs + found[name].macs) if name in found else layer

        hooks.append(module.register_forward_hook(note))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Attention mechanisms, and what has parameters of its own outside of them."""
    inside = [name for name, module in network.named_modules() if isinstance(module, AttentionModule)]
    for name, module in network.named_modules():
        outside = not any(name.startswith(f"{mechanism}.") for mechanism in inside)
        if name in inside or (module._parameters and outside):
            yield name, module


def _parameters(module: nn.Module) -> int:
    whole = isinstance(module, AttentionModule)
    return sum(p.numel() for p in module.parameters(recurse=whole))


def _macs(module: nn.Module, x: Tensor) -> int:
    """Of a forward on x, whose first dimension is the batch."""
    if isinstance(module, AttentionModule):
        return len(x) * module.macs(x.shape[2], x.shape[3])
    if isinstance(module, nn.Linear):
        return len(x) * module.in_features * module.out_features
    if isinstance(module, ResamplingConv2d):
        return _resampling_macs(module, x)
    if isinstance(module, nn.Conv2d):
        assert module.stride == (1, 1), "no layer of these networks strides"
        return len(x) * math.prod(x.shape[2:]) * module.weight[0].numel() * module.out_channels
    return 0  # norms with tables, embeddings: no products


def _resampling_macs(module: ResamplingConv2d, x: Tensor) -> int:
    """Folded: a 4×4 kernel on the smaller map, and the product that folds it; else a 3×3 one on the larger map."""
    channels, (height, width) = module.in_channels * module.out_channels, x.shape[2:]
    up = isinstance(module, UpsampleConv2d)
    small = (height, width) if up else (height // 2, width // 2)
    if module.folds(len(x), *small):
        return channels * (16 * len(x) * math.prod(small) + 9 * 16)
    return 9 * channels * len(x) * (4 if up else 1) * height * width


def as_result(config: Config, of: Tables) -> dict[str, Any]:
    """What `sagan bench step --layers` tells: rows, totals of one image, and of a whole step of a batch."""
    batch = config.training.batch_size
    result: dict[str, Any] = {"resolution": config.data.resolution, "batch_size": batch}
    for name, table in (("generator", of.generator), ("discriminator", of.judging)):
        result[name] = [
            {"layer": row.name, "kind": row.kind, "output": list(row.shape), "parameters": row.parameters,
             "mega_macs": row.macs / batch / 1e6}
            for row in table
        ]  # fmt: skip
        result[f"parameters_{name}"] = sum(row.parameters for row in table)
        result[f"mega_macs_{name}"] = total(table) / batch / 1e6
    return {**result, "giga_macs_step": step_macs(config, of) / 1e9}


def as_text(result: dict[str, Any]) -> str:
    """The same for people."""
    rows = [("", "kind", "output", "parameters", "mega multiply-adds")]
    for name in ("generator", "discriminator"):
        for row in result[name]:
            shape = "×".join(map(str, row["output"])) or "1"
            rows.append(
                (f"{name}.{row['layer']}", row["kind"], shape, f"{row['parameters']:,}", f"{row['mega_macs']:,.3f}")
            )
        parameters, macs = result[f"parameters_{name}"], result[f"mega_macs_{name}"]
        rows.append((f"{name}, one image", "", "", f"{parameters:,}", f"{macs:,.3f}"))
    step = f"a step of {result['batch_size']} images: {result['giga_macs_step']:.2f} giga multiply-adds"
    return f"{aligned(rows)}\n{step}"

"""Cost of each attention mechanism, relative to a 3x3 convolution: python benchmarks/attention.py."""

from functools import partial
from statistics import median

import click
import common
import torch
from torch import Tensor, nn

from sagan.attention import ATTENTION, SelfAttention, make_attention
from sagan.attention.functional import feature_map, tokens
from sagan.utils.errors import UserError

CONVOLUTION, EXPLICIT = "conv3x3", "self_attention_explicit"
COPIES = 4  # of the weights in forward and backward: logits, softmax, and the gradients of both


class ExplicitSelfAttention(nn.Module):
    """Self-attention that forms its (N, M) weights, as public SAGAN repositories compute it."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention
        pooled = (lambda t: nn.functional.max_pool2d(t, 2)) if a.pool else (lambda t: t)
        query, key, value = (tokens(t) for t in (a.query(x), pooled(a.key(x)), pooled(a.value(x))))
        weights = (query @ key.transpose(2, 3)).softmax(-1)  # (B, 1, N, M)
        return a.added(x, a.out(feature_map(weights @ value, *x.shape[2:])))


def mechanism(name: str, channels: int, resolution: int) -> nn.Module:
    """A mechanism with default options and nonzero gain, or the convolution."""
    if name == CONVOLUTION:
        return nn.Conv2d(channels, channels, 3, padding=1)
    module = make_attention(name.removesuffix("_explicit"), channels, resolution)
    for gain in module.gains().values():
        nn.init.ones_(gain)
    return ExplicitSelfAttention(module) if isinstance(module, SelfAttention) and name == EXPLICIT else module


def run(module: nn.Module, x: Tensor) -> None:
    """Forward and backward, with gradients of the input and of every parameter."""
    module.zero_grad(set_to_none=True)
    x.grad = None
    module(x).sum().backward()


@common.benchmark
@click.option("--names", type=common.CommaSeparated(click.Choice(list(ATTENTION))), default=",".join(ATTENTION),
              help="Mechanisms. [default: all]")  # fmt: skip
@click.option("--channels", type=click.IntRange(1), default=64, show_default=True)
@click.option("--resolution", type=click.IntRange(1), default=32, show_default=True, help="Side of the map.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@common.rounds(default=5)
@click.option("--explicit", is_flag=True, help="Also self-attention that forms its weights.")
def main(names: list[str], channels: int, resolution: int, batch_size: int, rounds: int, explicit: bool) -> common.Row:
    """Measure time (forward and backward), memory and multiply-adds; ratios are to the convolution.

    `ratio_explicit`: slowdown of self-attention that forms its (N, M) weights.
    """
    device, skipped, names = common.pick_device(), {}, [CONVOLUTION, *names]
    if explicit:
        needed, free = COPIES * 4 * batch_size * resolution**4 // 4, common.free_bytes(device)  # M = N / 4
        if needed > free:
            skipped[f"skipped_{EXPLICIT}"] = f"its weights need {needed} bytes, {free} are free"
        else:
            names.append(EXPLICIT)
    torch.manual_seed(0)
    try:
        modules = {name: mechanism(name, channels, resolution).to(device) for name in names}
    except ValueError as error:
        raise UserError(f"--channels {channels}, --resolution {resolution}: {error}") from None
    x = torch.randn(batch_size, channels, resolution, resolution, device=device, requires_grad=True)
    steps = {name: partial(run, module, x) for name, module in modules.items()}
    seconds, _ = common.interleaved(steps, rounds)
    result: common.Row = {**common.about(device), "channels": channels, "resolution": resolution,
                          "batch_size": batch_size, "rounds": rounds, "names": names, **skipped}  # fmt: skip
    for name, module in modules.items():
        macs = common.flops_of(lambda module=module: module(x)) / 2 / batch_size / 1e6
        result[f"parameters_{name}"] = sum(p.numel() for p in module.parameters())
        result[f"mega_macs_{name}"] = macs
        result[f"peak_mib_{name}"] = common.peak_mib(steps[name], device)
        result[f"milliseconds_{name}"] = 1000 * median(seconds[name])
        if name != CONVOLUTION:
            result[f"ratio_macs_{name}"] = macs / result[f"mega_macs_{CONVOLUTION}"]
            result[f"ratio_time_{name}"] = common.ratio(seconds[name], seconds[CONVOLUTION])
    if EXPLICIT in seconds and "self_attention" in seconds:
        result["ratio_explicit"] = common.ratio(seconds[EXPLICIT], seconds["self_attention"])
    return result


if __name__ == "__main__":
    main()

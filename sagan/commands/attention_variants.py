"""What `sagan bench attention` measures: time and peak memory of a mechanism beside those of a 3×3 convolution."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagan.attention import SelfAttention, make_attention
from sagan.attention.functional import feature_map, tokens
from sagan.commands.machine import free_bytes

CONVOLUTION, EXPLICIT = "conv3x3", "self_attention_explicit"
COPIES = 4  # of the weights that forward and backward hold at once: logits, weights, and the gradients of both


@dataclass(frozen=True)
class Variant:
    """A module, and its cost by formula for one image."""

    module: nn.Module
    macs: int
    parameters: int


def variants(names: list[str], channels: int, resolution: int, device: torch.device) -> dict[str, Variant]:
    """The convolution and each mechanism with its defaults, its gain not 0."""
    torch.manual_seed(0)
    macs = 9 * channels * channels * resolution * resolution
    made: dict[str, tuple[nn.Module, int]] = {CONVOLUTION: (nn.Conv2d(channels, channels, 3, padding=1), macs)}
    for name in names:
        mechanism = make_attention(name, channels, resolution)
        for gain in mechanism.gains().values():
            nn.init.ones_(gain)
        made[name] = mechanism, mechanism.macs(resolution, resolution)
    return {
        name: Variant(module.to(device), macs, sum(math.prod(p.shape) for p in module.parameters()))
        for name, (module, macs) in made.items()
    }


class ExplicitSelfAttention(nn.Module):
    """The same module with its (N, M) weights formed, as SAGAN's repositories compute it."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention
        pooled = (lambda t: nn.functional.max_pool2d(t, 2)) if a.pool else (lambda t: t)
        query, key, value = (tokens(t) for t in (a.query(x), pooled(a.key(x)), pooled(a.value(x))))
        weights = (query @ key.transpose(2, 3)).softmax(-1)  # (B, 1, N, M)
        return a.added(x, a.out(feature_map(weights @ value, *x.shape[2:])))


def explicit(channels: int, resolution: int, device: torch.device) -> Variant:
    """Self-attention with its weights formed; its parameters are those of the fused one of `variants`' defaults."""
    torch.manual_seed(0)
    fused = SelfAttention(channels, resolution)
    for gain in fused.gains().values():
        nn.init.ones_(gain)
    inner, outer = fused.query.out_channels, fused.value.out_channels
    pairs = fused.pairs(resolution, resolution)
    macs = fused.macs(resolution, resolution) + pairs * (inner + outer - 2 * max(inner, outer))  # nothing is padded
    return Variant(ExplicitSelfAttention(fused).to(device), macs, sum(math.prod(p.shape) for p in fused.parameters()))


def too_large(channels: int, resolution: int, batch_size: int, device: torch.device) -> str | None:
    """Why explicit attention's weights do not fit into what is free, in bytes; None where they do."""
    with torch.device("meta"):
        pairs = SelfAttention(channels, resolution).pairs(resolution, resolution)
    needed, free = COPIES * 4 * batch_size * pairs, free_bytes(device)
    return f"its weights need {needed} bytes, {free} are free" if needed > free else None


def step_of(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, gradients of the input and of every parameter."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x).sum().backward()

    return step


def peak_mib(step: Callable[[], object]) -> float:
    """Most MiB of tensors that a step holds at once beyond what was there before; not what a kernel uses inside.

    Counted from the storages themselves, so the same on every machine.
    """
    with _LiveBytes() as live:
        step()
    return live.peak / 2**20


@dataclass
class _Count:
    now: int = 0
    peak: int = 0
    alive: set[int] = field(default_factory=set)

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


class _LiveBytes(TorchDispatchMode):
    """Follows every tensor that an operation gives until its storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = _Count()

    @property
    def peak(self) -> int:
        return self.count.peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if tensor.untyped_storage()._cdata not in given:  # not a view, nor in place
                self.count.add(tensor.untyped_storage())
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

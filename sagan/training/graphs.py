"""CUDA graphs of whole updates: each kind of update is recorded once, then replayed with a single launch.

An eager step launches thousands of small kernels and is limited by the launches, not by the GPU. Compilation is not
needed. Requires one process; not for fp16, whose gradient scaler reads values on the host.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sagan.config.schema import TrainingSettings
from sagan.models.gan import GAN
from sagan.training.step import LatentBatch, RealBatch

WARM_UP = 3  # eager updates of each kind before it is recorded: they allocate optimizer state and choose kernels

Update = Callable[[list[RealBatch], list[LatentBatch]], dict[str, Tensor]]


def records_updates(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether a run records whole updates. With `compile`, `cuda_graphs` records the compiled parts instead."""
    return settings.cuda_graphs and not settings.compile and device.type == "cuda"


class CudaGraph:
    """A recorded call of `function`, which returns tensors by name and leaves gradients in `parameters`."""

    def __init__(self, function: Callable[[], dict[str, Tensor]], parameters: Sequence[nn.Parameter]) -> None:
        self.graph, self.parameters = torch.cuda.CUDAGraph(), parameters
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # another thread sends inputs meanwhile
            self.values = function()
        self.gradients = [parameter.grad for parameter in parameters]

    def replay(self) -> dict[str, Tensor]:
        """Run it again. The result and the gradients are in the same memory each time."""
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.values


@dataclass(frozen=True)
class _Recording:
    graph: Any
    reals: list[RealBatch]
    latents: list[LatentBatch]


class UpdateGraphs:
    """Runs the updates of a GAN from CUDA graphs. Results are valid until the next update of the same kind."""

    def __init__(self, gan: GAN) -> None:
        self.gan = gan
        self.recordings: dict[Hashable, _Recording] = {}
        self.warm_ups: dict[Hashable, int] = {}

    def run(
        self, network: nn.Module, kind: Hashable, update: Update, reals: Sequence[RealBatch],
        latents: Sequence[LatentBatch],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Run an update of `network`, eagerly at first. Updates of one `kind` differ only in their inputs."""
        if kind not in self.recordings:
            if self.warm_ups.get(kind, 0) < WARM_UP:
                self.warm_ups[kind] = self.warm_ups.get(kind, 0) + 1
                return _on_side_stream(lambda: update(list(reals), list(latents)))
            self.recordings[kind] = self._record(network, update, reals, latents)
        recording = self.recordings[kind]
        kept, given = tensors_of([*recording.reals, *recording.latents]), tensors_of([*reals, *latents])
        for mine, theirs in zip(kept, given, strict=True):
            mine.copy_(theirs, non_blocking=True)
        return recording.graph.replay()

    def _record(
        self, network: nn.Module, update: Update, reals: Sequence[RealBatch], latents: Sequence[LatentBatch]
    ) -> _Recording:
        inputs = [_copy(batch) for batch in reals], [_copy(batch) for batch in latents]

        def in_place() -> dict[str, Tensor]:
            buffers = [
                (module, name, buffer)
                for each in (self.gan.generator, self.gan.discriminator)
                for module in each.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None
            ]
            values = update(*inputs)
            for module, name, buffer in buffers:  # a replay does not see that a module has replaced its buffer
                found = module._buffers[name]
                if found is not buffer and found is not None:
                    module._buffers[name] = buffer.copy_(found)
            return values

        return _Recording(CudaGraph(in_place, [*network.parameters()]), *inputs)


def _copy(batch: Any) -> Any:
    return replace(batch, **{name: tensor.clone() for name, tensor in vars(batch).items() if tensor is not None})


def tensors_of(batches: Sequence[RealBatch | LatentBatch]) -> list[Tensor]:
    """All tensors of some micro-batches."""
    return [tensor for batch in batches for tensor in vars(batch).values() if tensor is not None]


def _on_side_stream(function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Run on another stream than the default one, as torch requires before recording."""
    if not torch.cuda.is_available():
        return function()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        values = function()
    torch.cuda.current_stream().wait_stream(side)
    return values

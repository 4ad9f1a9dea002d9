"""Training Deep Nets with Sublinear Memory Cost. Chen, Xu, Zhang, Guestrin. arXiv:1604.06174.

A module keeps its inputs alone for backward, which computes once more what lies between them and its output.
"""

from contextlib import nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sagan.attention.base import Listener, Observable
from sagan.normalization import HeldState

Tensors = dict[str, Tensor | None]


def recomputed(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """module(*inputs); its activations are not kept but computed again in backward, to the same bits.

    State that moves in a forward moves once: the recomputation sees parameters and state as this forward found them,
    moves copies of the state, and nobody listens to it. The module must draw no random numbers.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    result = checkpoint(
        module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), Then(module))
    )
    assert isinstance(result, Tensor)
    return result


class Then:
    """Inside, a network is as it was when this was made. It can be entered again, as for a second derivative."""

    def __init__(self, network: nn.Module) -> None:
        self.then = [Part(module) for module in network.modules()]
        for part in self.then:
            part.buffers = part.copied_state()
            part.listener = None
        self.now: list[Part] = []

    def __enter__(self) -> None:
        self.now = [Part(part.module) for part in self.then]
        for part in self.then:
            part.put(part.copied_state())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self.now:
            part.put(part.buffers)
        self.now = []


class Part:
    """One module of a network, and what it had of its own when this was made."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters: Tensors = {**module._parameters}
        self.buffers: Tensors = {**module._buffers}
        self.held = isinstance(module, HeldState) and module.held
        self.listener: Listener | None = module.listener if isinstance(module, Observable) else None

    def copied_state(self) -> Tensors:
        """Its buffers, copied where a forward moves them."""
        moves = isinstance(self.module, HeldState)
        return {name: t.clone() if moves and t is not None else t for name, t in self.buffers.items()}

    def put(self, buffers: Tensors) -> None:
        """Give the module back what it had, and these buffers."""
        self.module._parameters.update(self.parameters)  # type: ignore[arg-type]
        self.module._buffers.update(buffers)
        if isinstance(self.module, HeldState):
            self.module.held = self.held
        if isinstance(self.module, Observable):
            self.module.listener = self.listener

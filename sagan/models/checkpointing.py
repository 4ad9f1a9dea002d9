"""Training Deep Nets with Sublinear Memory Cost. Chen, Xu, Zhang, Guestrin. arXiv:1604.06174.

Activation checkpointing: a module stores only its inputs for backward and computes its activations again there.
"""

from contextlib import nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sagan.attention.base import Observable, Recorder
from sagan.layers.normalization import HeldState

Tensors = dict[str, Tensor | None]


def checkpoint_activations(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """module(*inputs), its activations computed again in backward, bit-for-bit identical.

    The second forward sees parameters and state as the first one found them. It updates copies of the state and is not
    recorded, so state moves once. The module must consume no random numbers.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    result = checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), RestoredState(module)),
    )
    assert isinstance(result, Tensor)
    return result


class RestoredState:
    """Context in which a network is as it was when this was created; reentrant, as for a second derivative."""

    def __init__(self, network: nn.Module) -> None:
        self.then = [ModuleState(module) for module in network.modules()]
        for state in self.then:
            state.buffers = state.copied_buffers()
            state.recorder = None
        self.now: list[ModuleState] = []

    def __enter__(self) -> None:
        self.now = [ModuleState(state.module) for state in self.then]
        for state in self.then:
            state.restore(state.copied_buffers())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for state in self.now:
            state.restore(state.buffers)
        self.now = []


class ModuleState:
    """One module of a network with its own parameters, buffers and flags at the time of creation."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters: Tensors = {**module._parameters}
        self.buffers: Tensors = {**module._buffers}
        self.held = isinstance(module, HeldState) and module.held
        self.recorder: Recorder | None = module.recorder if isinstance(module, Observable) else None

    def copied_buffers(self) -> Tensors:
        """The buffers, cloned where a forward updates them."""
        moves = isinstance(self.module, HeldState)
        return {name: t.clone() if moves and t is not None else t for name, t in self.buffers.items()}

    def restore(self, buffers: Tensors) -> None:
        """Give the module back its parameters and flags, and these buffers."""
        self.module._parameters.update(self.parameters)  # type: ignore[arg-type]
        self.module._buffers.update(buffers)
        if isinstance(self.module, HeldState):
            self.module.held = self.held
        if isinstance(self.module, Observable):
            self.module.recorder = self.recorder

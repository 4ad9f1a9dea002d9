"""Training Deep Nets with Sublinear Memory Cost. Chen, Xu, Zhang, Guestrin. arXiv:1604.06174.

Activation checkpointing: a module stores only its inputs for backward and computes its activations again there.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sagan.attention.base import Observable
from sagan.layers.normalization import HeldState


def checkpoint_activations(module: nn.Module, *inputs: Tensor | None, enabled: bool = True) -> Tensor:
    """module(*inputs); if `enabled`, its activations are computed again in backward, bit-for-bit identical.

    The second forward sees parameters and state as the first one found them. It updates copies of the state and is not
    recorded, so state moves once. The module must consume no random numbers.
    """
    if not enabled or not torch.is_grad_enabled():
        return module(*inputs)
    contexts = nullcontext(), RestoredState(module)
    result = checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)
    assert isinstance(result, Tensor)
    return result


class RestoredState:
    """Context in which a network is as it was when this was created; reusable, as for a second derivative."""

    def __init__(self, network: nn.Module) -> None:
        self.then = {module: copied(attributes_of(module)) for module in network.modules()}
        self.now: dict[nn.Module, dict[str, Any]] = {}

    def __enter__(self) -> None:
        self.now = {module: attributes_of(module) for module in self.then}
        for module, attributes in self.then.items():
            module.__dict__.update(copied(attributes) | ({"recorder": None} if "recorder" in attributes else {}))

    def __exit__(self, *_: object) -> None:
        for module, attributes in self.now.items():
            module.__dict__.update(attributes)
        self.now = {}


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The module's own parameters and buffers, and the flags on which its forward depends."""
    names = ["_parameters", "_buffers", *["held"] * isinstance(module, HeldState)]
    names += ["recorder"] * isinstance(module, Observable)
    return {name: module.__dict__[name] for name in names}


def copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy in which buffers are cloned where a forward updates them."""
    buffers = attributes["_buffers"]
    if "held" in attributes:
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    return attributes | {"_parameters": dict(attributes["_parameters"]), "_buffers": dict(buffers)}

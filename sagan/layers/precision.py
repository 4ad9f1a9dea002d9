"""Precision under autocast: compute in float32 where half precision would overflow or lose digits."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x, or x in float32 where it is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast. The meta device has no autocast (asking torch breaks compiled graphs in torch 2.11)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)

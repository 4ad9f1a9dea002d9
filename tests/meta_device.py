"""A device without data: it fails where a GPU would wait for the host, or find a tensor on the CPU.

The meta device cannot be read: `.item()`, shapes that depend on values and copies to the host raise. `Device` also
forbids tensors of the host: to copy them, a GPU waits unless their memory is pinned, and a recording ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class Device(TorchDispatchMode):
    """In this thread, an operation on meta tensors and tensors of the CPU raises, and so does making one of data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if len(found) > 1:
            raise RuntimeError(f"{func.name()} of tensors on {' and '.join(sorted(found))}")
        return result


@contextmanager
def device() -> Iterator[None]:
    """`Device`; also for tensors that torch makes of data on the meta device without an operation."""

    def refused(data: object, *args: object, **kwargs: object) -> Tensor:
        raise RuntimeError(f"{data} is copied to the device")

    with pytest.MonkeyPatch.context() as patch, Device():
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
            patch.setattr(owner, name, refused)
        yield

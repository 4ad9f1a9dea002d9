"""One cell of `sagan bench memory`, in a process of its own."""

import ctypes
import gc
import json
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from sagan.commands.bench import Variant
from sagan.commands.bench_worker import Row
from sagan.commands.machine import bench_device, free_bytes, memory_of_process
from sagan.commands.step_variants import peak_of, stepper
from sagan.config import make_config, replaced
from sagan.memory import peak_resident_mib
from sagan.settings import Config

MIB = 2**20
STEPS = 2  # the first makes the optimisers' moments
# What a process may take beyond the limit of counted tensors: kernels' own memory and the heap's, grows with them; and
# what torch imports and maps with its first steps.
ROOM, ROOM_MIB = 1.25, 1024


def work() -> None:
    """The process: one line, what the step of the task on stdin holds at most, or why it was not run."""
    task = json.load(sys.stdin)
    config = make_config(task["config"])
    device = bench_device(config)
    limit = free_bytes(device) * task["share"] if task["limit_gib"] is None else task["limit_gib"] * 2**30
    print(json.dumps(_cell(config, device, limit / MIB)), flush=True)


def _cell(config: Config, device: torch.device, limit_mib: float) -> Row:
    about: Row = {"device": str(device), "limit_mib": limit_mib}
    _forbid_more(limit_mib, device)
    try:
        about["estimated_mib"] = estimated_mib(config, device)
        if about["estimated_mib"] > limit_mib:
            return {"state": "too large", **about}
        step = stepper(config, device, Variant())
        peak = _peak_of(step, device)
        return {"state": "ok", **about, "peak_mib": peak, "counted_mib": peak_of(step, device)}
    except (torch.OutOfMemoryError, MemoryError):
        return {"state": "out of memory", **about}
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return {"state": "out of memory", **about}


def estimated_mib(config: Config, device: torch.device) -> float:
    """About what the tensors of a step hold, by the slope between batches of one and two.

    Rather too little where the weights decide in small batches and the activations in large ones.
    """
    one, two = (_counted(config, device, batch) for batch in (1, 2))
    return one + (config.training.batch_size - 1) * (two - one)


def _counted(config: Config, device: torch.device, batch: int) -> float:
    step = stepper(replaced(config, {"training": {"batch_size": batch}}), device, Variant())
    found = peak_of(step, device)
    assert found is not None, "eager steps can be counted"
    return found


def _peak_of(step: Callable[[], object], device: torch.device) -> float:
    """MiB beyond the loaded networks: by the allocator on a GPU, else resident memory of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        _forget_peak()
        before = _resident_mib("VmRSS")
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MIB - before
    return _resident_mib("VmHWM") - before


def _forget_peak() -> None:
    """Give freed memory back to the system, and let Linux count the peak of resident memory anew."""
    gc.collect()  # what was estimated with holds itself in circles through its optimisers
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_mib(field: str) -> float:
    """VmRSS, now, or VmHWM, the peak; where there is no /proc, the peak since the process began."""
    peak = peak_resident_mib(resource.getrusage(resource.RUSAGE_SELF))
    return memory_of_process().get(field, peak)


def _forbid_more(limit_mib: float, device: torch.device) -> None:
    """Let allocations fail beyond the limit, before the kernel ends a process that it chooses."""
    if device.type == "cpu" and sys.platform == "linux":
        most = int((memory_of_process()["VmData"] + ROOM * limit_mib + ROOM_MIB) * MIB)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

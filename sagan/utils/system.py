"""Process groups, memory and signals."""

import resource
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PATIENCE = timedelta(hours=12)  # others wait while rank 0 works alone


def rank_and_count() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def process_group(world: int, device: torch.device) -> Iterator[None]:
    """Join the `world` processes that torchrun started. Does nothing for one process or an existing group."""
    if world == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_in_turn(parts: list[np.ndarray]) -> np.ndarray | None:
    """Gather rows (N, …) of all processes on rank 0, None on the others. Part j of rank r has place j·processes + r."""
    rank, count = rank_and_count()
    if count == 1:
        return np.concatenate(parts)
    everyone: list[Any] | None = [None] * count if rank == 0 else None
    dist.gather_object(parts, everyone)
    if everyone is None:
        return None
    return np.concatenate([share[j] for j in range(len(parts)) for share in everyone if j < len(share)])


def from_first(value: T) -> T:
    """Broadcast the value of rank 0."""
    if rank_and_count()[1] == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def peak_resident_mib(usage: resource.struct_rusage) -> float:
    """Peak resident memory of a process, in MiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def free_signals() -> list[signal.Signals]:
    """The signals that a library may watch: SIGINT, in the main thread of a program without a handler of its own."""
    main = threading.current_thread() is threading.main_thread()
    return [signal.SIGINT] if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


@contextmanager
def caught_signals(watched: Sequence[signal.Signals] = SIGNALS) -> Iterator[list[int]]:
    """Collect the `watched` signals instead of terminating; a second SIGINT terminates.

    A second SIGTERM does not: Slurm and torchrun each send one. Earlier handlers are restored on exit.
    """
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    previous = {number: signal.signal(number, note) for number in watched}
    try:
        yield received
    finally:
        for number in watched:
            signal.signal(number, previous[number])

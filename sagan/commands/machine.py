"""What this machine has to give: the rate of its matrix product, its free memory."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from sagan.settings import Config

SIDES = {"cuda": 8192, "cpu": 1024}  # of matrices whose product keeps the device busy without taking long


def bench_device(config: Config | None = None) -> torch.device:
    """What benchmarks compute on: a CUDA device where there is one, unless the config wants the CPU."""
    wanted = config is None or config.training.device != "cpu"
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def product(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Callable[[], torch.Tensor], int]:
    """A matrix product, and its operations (two a multiply-add)."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b), 2 * side**3


def memory_of_process() -> dict[str, float]:
    """MiB of this process as Linux tells them: VmRSS now, VmHWM at most, RssAnon, RssFile…; empty elsewhere."""
    told = Path("/proc/self/status")
    lines = [line.split() for line in told.read_text().splitlines()] if told.is_file() else []
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken without swapping; on Linux what the kernel could give back counts."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    for line in told.read_text().splitlines() if told.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""The benchmark harness: interleaved rounds, ratios within a round, peak memory, cells in child processes.

Machines are shared and noisy, so variants take turns in one run and results are medians of per-round ratios.
"""

import json
import multiprocessing
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sagan.config.load import load_config
from sagan.config.schema import Config
from sagan.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SAGAN = [sys.executable, "-c", "from sagan.cli import main; main()"]
MIB = 2**20
Row = dict[str, Any]
Step = Callable[[], object]
rounds = partial(click.option, "--rounds", type=click.IntRange(1), show_default=True, help="Interleaved rounds.")


def benchmark(measure: Callable[..., Row]) -> click.Command:
    """A command that prints the row that `measure` returns; its docstring is the help."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True, help="Print the result on one line.")
    @wraps(measure)
    def command(as_json: bool, **options: Any) -> None:
        try:
            result = measure(**options)
        except UserError as error:
            raise click.UsageError(str(error)) from None
        print(json.dumps(result, indent=None if as_json else 2))

    return command


def of_config(*default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add CONFIG and --set; the command gets the Config as `settings`. `default`: overrides used without CONFIG."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.argument("config", required=False)
        @click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting.")
        @wraps(command)
        def with_settings(config: str | None, overrides: tuple[str, ...], **options: Any) -> object:
            return command(settings=load_config(config, [*(() if config else default), *overrides]), **options)

        return with_settings

    return decorate


class CommaSeparated(click.ParamType):
    """ "a,b" -> [a, b], each converted by another type."""

    name = "list"

    def __init__(self, kind: click.ParamType) -> None:
        self.kind = kind

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        return [self.kind.convert(word.strip(), param, ctx) for word in value.split(",")]


def pick_device(config: Config | None = None) -> torch.device:
    """A CUDA device if available, unless the config asks for the CPU."""
    wanted = config is None or config.training.device != "cpu"
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def about(device: torch.device) -> Row:
    """Device, threads and torch version, as every benchmark records them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def timed(step: Step, count: int = 1) -> float:
    """Seconds of `count` steps, including queued GPU work."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    steps: Mapping[str, Step], count: int, repeat: int = 2
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of one step of every variant in each of `count` rounds, and seconds of its warm-up.

    The warm-up is one step, on a GPU three: CUDA graphs are recorded in the second and replayed in the third.
    """
    warm_up = {name: timed(step, 3 if torch.cuda.is_initialized() else 1) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, step in steps.items():
            seconds[name].append(timed(step, repeat) / repeat)
    return seconds, warm_up


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The speedup of `fast`: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def rates(amount: float, seconds: Mapping[str, Sequence[float]]) -> Row:
    """images_per_second_NAME of every variant, and spread_NAME: slowest round over fastest round, minus 1."""
    found: Row = {}
    for name, each in seconds.items():
        found[f"images_per_second_{name}"] = amount / statistics.median(each)
        found[f"spread_{name}"] = max(each) / min(each) - 1
    return found


def flops_of(step: Step) -> int:
    """Operations of convolutions and matrix products in one eager step; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_product(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Step, int]:
    """A large matrix product, close to the machine's peak, and its number of operations."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b), 2 * side**3


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated without swapping."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def peak_mib(step: Step, device: torch.device) -> float:
    """Peak MiB that a step allocates: from CUDA's allocator, else by counting tensors (the same on every machine)."""
    if device.type != "cuda":
        with _LiveBytes() as live:
            step()
        return live.peak / MIB
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of every storage that operations create, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.alive:  # neither a view nor in place
                self.alive.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key, size)
        return result

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def cells_in_processes(
    work: Callable[[Any], Row], cells: Sequence[Any], seconds: float, cell_seconds: float
) -> Iterator[tuple[Any, Row]]:
    """Yield every cell with `work(cell)`, computed in a child process, as far as the time reaches.

    A cell that runs out of memory or time, or whose process dies, yields a row that says so in "state"; the next cell
    gets a new process.
    """
    pool, end = None, time.monotonic() + seconds
    for cell in cells:
        if (left := min(cell_seconds, end - time.monotonic())) <= 0:
            break
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            row = pool.submit(_work, work, cell).result(left)
        except OutOfTime:
            row = {"state": "out of time"}
        except BrokenProcessPool:
            row = {"state": "failed", "why": "its process died"}
        yield cell, row
        if row["state"] != "ok":
            pool = _end(pool)
    _end(pool)


def _end(pool: ProcessPoolExecutor | None) -> None:
    for process in multiprocessing.active_children():
        with suppress(psutil.NoSuchProcess):  # it may end by itself
            for compiler in psutil.Process(process.pid).children(recursive=True):
                compiler.kill()
        process.kill()
    if pool is not None:
        pool.shutdown()


def _work(work: Callable[[Any], Row], cell: Any) -> Row:
    try:
        return {"state": "ok", **work(cell)}
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            return {"state": "out of memory"}
        return {"state": "failed", "why": f"{type(error).__name__}: {error}"[:200]}

"""Two gloo processes without the start-up time of a launcher: this one, and a fork of it."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def in_two(function: Callable[[int], None], folder: Path) -> None:
    """Call function(rank) in two processes that form a group; rank 0 is this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork cannot use the threads of its parent
    other = multiprocessing.get_context("fork").Process(target=_join, args=(function, folder, 1))
    other.start()
    try:
        _join(function, folder, 0)
        other.join(timeout=60)
        assert other.exitcode == 0, (folder / "1.txt").read_text()
    finally:
        other.kill()
        torch.set_num_threads(threads)


def _join(function: Callable[[int], None], folder: Path, rank: int) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
        function(rank)
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()

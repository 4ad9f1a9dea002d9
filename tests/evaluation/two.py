"""Two processes without the start-up time of a launcher: this one, and a fork of it."""

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sagan.utils.system import process_group


def in_two(function: Callable[[int], None], folder: Path) -> None:
    """Call function(rank) in two processes that form a group, as torchrun does; rank 0 is this process."""
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork cannot use the threads of its parent
    other = multiprocessing.get_context("fork").Process(target=_join, args=(function, folder, 1))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forks of processes with threads
            other.start()
        try:
            _join(function, folder, 0)
            other.join(timeout=60)
            assert other.exitcode == 0, (folder / "1.txt").read_text()
        finally:
            other.kill()
            torch.set_num_threads(threads)


def _join(function: Callable[[int], None], folder: Path, rank: int) -> None:
    os.environ["RANK"] = str(rank)
    try:
        with process_group(2, torch.device("cpu")):
            function(rank)
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise

"""`sagan train` in other processes: two with torchrun, or forked from one import of everything (no start-up time)."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from tiny import log_of

from sagan.cli import main

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # and nothing that tells Accelerate where
# The default rates: at 1e-3 and 2e-3 differences of rounding grow to 1e-3 of a loss within three steps.
RATES = {"generator": {"lr": 1e-4}, "discriminator": {"lr": 4e-4}}
PRELOADED = ["sagan.training.evaluator", "sagan.training.finetune", "sagan.training.trainer", "torch.utils.tensorboard"]


def launch(config: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start `torchrun --nproc_per_node 2 train.py CONFIG --out OUT --set OVERRIDE …`."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train.py")]
    changes = [part for override in overrides for part in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, str(config), "--out", str(out), *changes],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train_in_two(config: Path, out: Path, *overrides: str, succeeds: bool = True) -> str:
    """Train to the end with torchrun; returns stderr. Processes that wait for each other forever are killed."""
    with launch(config, out, *overrides) as process:
        try:
            _, stderr = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
            pytest.fail(f"the two processes hang: {stderr[-2000:]}")
    assert (process.returncode == 0) == succeeds, stderr[-4000:]
    return stderr


def wait_for(process: subprocess.Popen[str] | ForkServerProcess, path: Path) -> None:
    """Return when the running process has written `path`."""
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.is_alive() if isinstance(process, ForkServerProcess) else process.poll() is None, path
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(
    config: Path, run: Path, stderr: Path, *options: str, environment: dict[str, str] | None = None
) -> ForkServerProcess:
    """Start `sagan train CONFIG --out RUN OPTIONS` in a forked process; its stderr goes to the file `stderr`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    arguments = ["train", str(config), "--out", str(run), *options]
    process = context.Process(target=_train, args=(arguments, stderr, environment or {}))
    process.start()
    return process


def start_two(config: Path, run: Path) -> list[ForkServerProcess]:
    """Start training in two forked processes, as torchrun does; their stderr goes to RUN-0.txt and RUN-1.txt."""
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    logs = [run.with_name(f"{run.name}-{rank}.txt") for rank in "01"]
    environments = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
         "MASTER_PORT": port} for rank in "01"
    ]  # fmt: skip
    return [start(config, run, log, environment=each) for log, each in zip(logs, environments, strict=True)]


def fork_two(config: Path, run: Path) -> str:
    """Train to the end in two forked processes, as `train_in_two` does but without the start-up time of torchrun."""
    both = start_two(config, run)
    for process in both:
        process.join(timeout=120)
    text = "".join(run.with_name(f"{run.name}-{rank}.txt").read_text() for rank in "01")
    hanging = [process for process in both if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, text[-4000:]
    assert [process.exitcode for process in both] == [0, 0], text[-4000:]
    return text


def _train(arguments: list[str], stderr: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.dup2(os.open(stderr, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
    main(arguments)


def assert_same_losses(found: Path, expected: Path, rel: float) -> None:
    """Losses, logits and gradient norms of every logged step, to a relative tolerance."""
    assert len(log_of(found)) == len(log_of(expected)) > 0
    for here, there in zip(log_of(found), log_of(expected), strict=True):
        assert here.keys() == there.keys()
        for name in there:
            if name.endswith(("_loss", "_logits", "_norm")) or name in ("r1", "step"):
                assert here[name] == pytest.approx(there[name], rel=rel, abs=rel), (here["step"], name)

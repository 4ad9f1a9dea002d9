"""`sagan train` in processes that share one import of everything: a start takes no seconds, a kill hits work."""

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from sagan.cli import main

IMPORTED = ["sagan.training.evaluator", "sagan.training.finetune", "sagan.training.trainer", "torch.utils.tensorboard"]


def start(config: Path, run: Path, said: Path, *options: str) -> ForkServerProcess:
    """Begin `sagan train CONFIG --out RUN OPTIONS` in a process of its own; what it says goes to the file `said`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_train, args=(["train", str(config), "--out", str(run), *options], said))
    process.start()
    return process


def _train(arguments: Sequence[str], said: Path) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
    main([*arguments])

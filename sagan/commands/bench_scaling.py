"""`sagan bench scaling`: real training in several processes (torchrun) against one, in interleaved rounds."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sagan.commands.bench_result import show
from sagan.config import load_config, replaced
from sagan.errors import UserError
from sagan.progress import track
from sagan.settings import Config

COMMAND = "from sagan.cli import main; main()"
SMALL = ["generator.channels=16", "discriminator.channels=16", "training.batch_size=8"]
IMAGES = 256  # of the embedded shapes, on which every config is timed


@dataclass(frozen=True)
class Options:
    """As the command line gives them. `threads`: of each process; `device`: "cpu" also where there are GPUs."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    processes: int = 2
    threads: int = 1
    steps: int = 12
    rounds: int = 3
    device: str = "auto"
    as_json: bool = False


def bench_scaling_command(options: Options) -> None:
    """Print images/s of one process and of `options.processes`, each with the config's batch (the global one grows).

    `ratio_efficiency`: rate of n processes / (n times the rate of one), median of the rounds; 1 is perfect. Data is
    `shapes` at the config's resolution; starting up, the first quarter of the steps and what is saved are not timed.
    """
    config = load_config(options.config, [*(SMALL if options.config is None else ()), *options.overrides])
    counts = (1, options.processes)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        paths = {count: Path(folder) / f"{count}.yaml" for count in counts}
        for count, path in paths.items():
            path.write_text(timed_config(config, count, options.steps, Path(folder) / "data", options.device).to_yaml())
        turns = [(i, count) for i in range(options.rounds) for count in counts]
        for i, count in track(turns, len(turns), "rounds"):
            out = Path(folder) / f"{count}-{i}"
            _train(paths[count], out, count, options)
            rates[count].append(rate_of(out))
    one, many = (rates[count] for count in counts)
    result: dict[str, Any] = {
        "resolution": config.data.resolution,
        "batch_size_a_process": config.training.batch_size,
        "processes": options.processes,
        "threads_a_process": options.threads,
        "rounds": options.rounds,
        "images_per_second_1": median(one),
        f"images_per_second_{options.processes}": median(many),
        "ratio_efficiency": median(n / (options.processes * a) for a, n in zip(one, many, strict=True)),
    }
    show(result, options.as_json)


def timed_config(config: Config, processes: int, steps: int, data: Path, device: str) -> Config:
    """The config on shapes in `data`, its batch once for each process, logged four times and shown only at the end."""
    every = dict.fromkeys(("sample_every", "snapshot_every", "checkpoint_every"), steps + 1)
    classes = 0 if config.data.num_classes == 0 else None
    return replaced(
        config,
        {
            "data": {"source": f"shapes:{IMAGES}", "prepared": str(data), "num_classes": classes},
            "training": {
                **every, "steps": steps, "batch_size": config.training.batch_size * processes, "trackers": [],
                "log_every": max(1, steps // 4), "init_from": None,
                "device": "cpu" if device == "cpu" else config.training.device,
            },
            "evaluate": {"every": 0},
        },
    )  # fmt: skip


def rate_of(run: Path) -> float:
    """Images a second between the first and the last line of a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = ((1000 * line["kimg"], line["images_per_second"]) for line in (lines[0], lines[-1]))
    seconds = [images / rate for images, rate in (first, last)]
    return (last[0] - first[0]) / (seconds[1] - seconds[0])


def _train(config: Path, out: Path, processes: int, options: Options) -> None:
    """`sagan train`, alone or under torchrun; its error is ours."""
    launcher = [sys.executable, "-c", COMMAND]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--no-python"]
        launcher = [sys.executable, *torchrun, *launcher]
    command = [*launcher, "train", str(config), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("sagan: ")] or [
            line for line in done.stderr.splitlines() if "Error: " in line
        ]
        raise UserError(f"training in {processes} processes failed: {said[-1] if said else done.returncode}")

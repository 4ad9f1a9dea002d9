"""Training throughput of several processes (torchrun) and of one: python benchmarks/scaling.py [CONFIG]."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import click
import common

from sagan.config.load import replaced
from sagan.config.schema import Config
from sagan.utils.errors import UserError

SMALL = ["generator.channels=16", "discriminator.channels=16", "training.batch_size=8"]
IMAGES = 256  # of the embedded shapes


def timed_config(config: Config, processes: int, steps: int, data: Path) -> Config:
    """The config on shapes with its batch size per process, logged four times, without evaluation or saving."""
    training = dict.fromkeys(("sample_every", "snapshot_every", "checkpoint_every"), steps + 1)
    training |= {"steps": steps, "batch_size": config.training.batch_size * processes, "log_every": max(1, steps // 4)}
    source = {"source": f"shapes:{IMAGES}", "prepared": str(data), "num_classes": config.data.num_classes and None}
    return replaced(config, {"data": source, "training": training | {"trackers": []}, "evaluate": {"every": 0}})


def train(config: Path, out: Path, processes: int, threads: int) -> float:
    """Seconds per image of `sagan train`, alone or under torchrun, without start-up, warm-up and saving."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--no-python"]
    command = [*([sys.executable, *launcher] * (processes > 1)), *common.SAGAN, "train", str(config), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"training in {processes} processes failed: {done.stderr.strip().splitlines()[-1:]}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first, last = ((1000 * line["kimg"], line["images_per_second"]) for line in (lines[0], lines[-1]))
    return (last[0] / last[1] - first[0] / first[1]) / (last[0] - first[0])


@common.benchmark
@common.of_config(*SMALL)
@click.option("--processes", type=click.IntRange(2), default=2, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each process.")
@click.option("--steps", type=click.IntRange(2), default=12, show_default=True, help="The first quarter is not timed.")
@common.rounds(default=3)
def main(settings: Config, processes: int, threads: int, steps: int, rounds: int) -> common.Row:
    """Train with the same batch size per process. `ratio_efficiency`: 1 is perfect scaling."""
    seconds: dict[int, list[float]] = {1: [], processes: []}
    with tempfile.TemporaryDirectory() as name:
        for i in range(rounds):
            for count, each in seconds.items():
                path = Path(name) / f"{count}.yaml"
                path.write_text(timed_config(settings, count, steps, Path(name) / "data").to_yaml())
                each.append(train(path, Path(name) / f"{count}-{i}", count, threads))
    return {
        "resolution": settings.data.resolution, "batch_size_a_process": settings.training.batch_size,
        "processes": processes, "threads_a_process": threads, "rounds": rounds,
        **{f"images_per_second_{count}": 1 / median(each) for count, each in seconds.items()},
        "ratio_efficiency": common.ratio(seconds[1], seconds[processes]) / processes,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Run the measurements of docs/results/gpu on one GPU: python benchmarks/gpu.py --data DATA --weights INCEPTION.pth

Each command has its own time limit and writes to --out. Run the same command again to resume: finished results are
kept, and training resumes. `--only NAME` runs one command.
"""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import common

GRACE = 45  # seconds to save a checkpoint


@dataclass(frozen=True)
class Command:
    """`sagan WORDS`, or a benchmark ("step.py ..."). `result`: the file it makes; *.json: its standard output."""

    name: str
    words: list[str]
    seconds: float
    result: str


def plan(out: Path, data: Path, weights: list[str], config: str, steps: int) -> list[Command]:
    """The commands, most useful first."""
    o, d, c = (shlex.quote(str(each)) for each in (out, data, config))
    schedule = f"--set training.steps={steps} --set optim.decay_start={steps // 4}"
    score = f"evaluate {o}/run --reference {d} {shlex.join(weights)} --json --num"
    step = "--set optim.accumulation=1 --rounds 3 --variants plain,project,tf32,bf16 --json"
    attention = "attention.py --names self_attention --explicit --json --resolution"
    table = [  # name, seconds, words, result if not NAME.json
        ("throughput", 120, f"throughput.py {c} --json --seconds 110 --batch-sizes 256,512,128"),
        ("train", 1080, f"train {c} --out {o}/run --set data.source={d} {schedule}", f"run/snapshots/{steps:08d}"),
        ("fid", 240, f"{score} 50000 --metrics fid,kid"),
        ("sample", 120, f"sample {o}/run --out {o}/png --num 50000", "png/samples.json"),
        ("torch-fidelity", 300, f"evaluate.py {shlex.join(weights)} --num 4096 --fid {o}/png {d} --json"),
        ("attend", 120, f"attend {o}/run --out {o}/attention --network both", "attention/attention.png"),
        ("manifold", 240, f"{score} 10000 --metrics precision,recall,density,coverage"),
        ("step-studio64", 200, f"step.py studio64 --set training.batch_size=64 {step}"),
        ("step-mmgen128", 200, f"step.py mmgen128 --set training.batch_size=32 {step}"),
        *((f"attention-{side}", 60, f"{attention} {side}") for side in (32, 64, 128, 256)),
        ("compiled", 540, f"throughput.py {c} --json --seconds 500 --cell-seconds 500 --batch-sizes 256 "
         "--precisions bf16 --compile"),
    ]  # fmt: skip
    return [
        Command(name, shlex.split(words), seconds, *(result or [f"{name}.json"]))
        for name, seconds, words, *result in table
    ]


def run_command(command: Command, out: Path) -> str:
    """Run a command within its time limit; returns the outcome."""
    result, (program, *arguments) = out / command.result, command.words
    if result.exists():
        return "already done"
    script = [sys.executable, str(common.ROOT / "benchmarks" / program)] if program.endswith(".py") else None
    path = os.pathsep.join([str(common.ROOT), os.environ.get("PYTHONPATH", "")])
    partial = out / f".{command.name}.stdout"
    with partial.open("wb") as stdout, subprocess.Popen(
        [*(script or [*common.SAGAN, program]), *arguments], stdout=stdout, env={**os.environ, "PYTHONPATH": path}
    ) as process:  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            process.wait(command.seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # `sagan train` saves a checkpoint
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            return "out of time"
    if process.returncode == 0 and result.suffix == ".json" and not result.exists():
        partial.replace(result)
    return f"exit code {process.returncode}" if process.returncode else "done"


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Prepared CIFAR-10 training images.")
@click.option("--weights", type=click.Path(path_type=Path), help="Inception weights (default: torch hub's cache).")
@click.option("--config", default="cifar10", show_default=True)
@click.option("--steps", default=24_000, show_default=True, help="Images/s of throughput.json x 1020 s / batch size.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/gpu"), show_default=True)
@click.option("--only", multiple=True, help="Run only this command; repeat for several.")
def main(data: Path, weights: Path | None, config: str, steps: int, out: Path, only: tuple[str, ...]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for command in plan(out, data, ["--inception-weights", str(weights)] if weights else [], config, steps):
        if not only or command.name in only:
            print(f"{command.name}: {run_command(command, out)}", flush=True)


if __name__ == "__main__":
    main()

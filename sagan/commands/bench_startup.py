"""`sagan bench startup`: what commands cost before and beside their work, in interleaved rounds of real processes."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagan.commands.bench_result import show

IMAGES = 16
SAGAN = ["-c", "from sagan.cli import main; main()"]  # what the script `sagan` does


@dataclass(frozen=True)
class Took:
    """Seconds of one process: by the clock, and of processors."""

    wall: float
    processor: float


def bench_startup_command(rounds: int, as_json: bool) -> None:
    """Print seconds of python, of `import torch`, `sagan --help` and `sagan sample`, and ratios.

    The sample: 16 images of 32 px, of a snapshot of the studio32 generator (64 channels, random weights).
    """
    with tempfile.TemporaryDirectory() as folder:
        took = time_processes(_snapshot(Path(folder)), Path(folder), rounds)
    result: dict[str, Any] = {"rounds": rounds, "images": IMAGES, "resolution": 32, "channels": 64}
    for name, each in took.items():
        walls = [one.wall for one in each]
        result[f"seconds_{name}"] = statistics.median(walls)
        result[f"spread_{name}"] = max(walls) / min(walls) - 1
        result[f"processor_seconds_{name}"] = statistics.median(one.processor for one in each)
    for name, base in (("help", "python"), ("sample", "import_torch")):
        result[f"ratio_{name}_to_{base}"] = _ratio(took[name], took[base])
    show(result, as_json)


def time_processes(snapshot: Path, folder: Path, rounds: int) -> dict[str, list[Took]]:
    """Every process in turn, `rounds` times, after one round that is not counted; images go into `folder`."""
    from sagan.progress import track

    took: dict[str, list[Took]] = {}
    for i in track(range(rounds + 1), rounds + 1, "starting processes"):
        for name, arguments in {
            "python": ["-c", "pass"],
            "import_torch": ["-c", "import torch"],
            "help": [*SAGAN, "--help"],
            "sample": [*SAGAN, "sample", str(snapshot), "--num", str(IMAGES), "--out", str(folder / f"out{i}")],
        }.items():
            one = _run(arguments)
            took.setdefault(name, []).extend([one] if i else [])
    return took


def _run(arguments: list[str]) -> Took:
    """Byte code is kept, as Python does if nobody forbids it: the round that is not counted compiles what is new."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _ratio(theirs: list[Took], base: list[Took]) -> float:
    return statistics.median(a.wall / b.wall for a, b in zip(theirs, base, strict=True))


def _snapshot(folder: Path) -> Path:
    from sagan.commands.sample_variants import generator_of, project_form
    from sagan.snapshot import save_snapshot

    save_snapshot(project_form(generator_of(None)), folder / "snapshot")
    return folder / "snapshot"

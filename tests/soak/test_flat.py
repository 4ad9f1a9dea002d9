"""Thousands of steps with everything on: memory, open files and the time of a step stay what they were."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import yaml
from tiny import TINY

from sagan.data.dataset import PreparedData
from sagan.utils.io import write_json

STEPS, SECONDS_BETWEEN_LOOKS = 4000, 0.5
TRAIN = "import sys; from sagan.cli import main; main(['train', *sys.argv[1:]])"


def write_config(folder: Path, data: PreparedData) -> Path:
    """Logs, trackers, sheets, figures, scores, snapshots and checkpoints, each many times."""
    every = {"log_every": 5, "sample_every": 100, "snapshot_every": 100, "checkpoint_every": 50}
    config = {
        **TINY,
        "data": {"source": str(data.folder), "flip": True},
        "training": {**TINY["training"], "steps": STEPS, **every, "trackers": ["tensorboard"]},
        "augment": {"policy": ["color", "translation", "cutout"]},
        "evaluate": {"every": 100, "num": 64, "metrics": ["coherence"], "best": "hue_agreement"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def look(process: psutil.Process, log: Path) -> dict[str, float] | None:
    """Step, memory (MiB), open files, threads, CPU seconds so far; None before the first step and at the end."""
    try:
        with process.oneshot(), open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            step = json.loads(file.read().splitlines()[-1])["step"]
            used = process.cpu_times()
            return {
                "step": step, "memory_mib": process.memory_info().rss / 2**20, "open_files": process.num_fds(),
                "threads": process.num_threads(), "cpu_seconds": used.user + used.system, "seconds": time.monotonic(),
            }  # fmt: skip
    except (OSError, IndexError, json.JSONDecodeError, psutil.Error):
        return None


def part(looks: list[dict[str, float]], begin: float, end: float) -> dict[str, Any]:
    """What was seen between two shares of the run, before its last step (which draws, scores and saves at once)."""
    seen = [one for one in looks if begin * STEPS <= one["step"] <= end * STEPS and one["step"] < STEPS]
    steps = seen[-1]["step"] - seen[0]["step"]
    return {
        "steps": [seen[0]["step"], seen[-1]["step"]],
        "memory_mib": round(median(one["memory_mib"] for one in seen), 1),
        "open_files": median(one["open_files"] for one in seen),
        "threads": median(one["threads"] for one in seen),
        "cpu_ms_per_step": round(1000 * (seen[-1]["cpu_seconds"] - seen[0]["cpu_seconds"]) / steps, 2),
        "ms_per_step": round(1000 * (seen[-1]["seconds"] - seen[0]["seconds"]) / steps, 2),
    }


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_long_run_stays_flat(tmp_path: Path, data: PreparedData) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", TRAIN, str(write_config(tmp_path, data)), "--out", str(run)]
    environment, looks = {**os.environ, "OMP_NUM_THREADS": "1"}, []
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(command, stderr=said, env=environment)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        looks += [found] if (found := look(watched, run / "log.jsonl")) else []
        time.sleep(SECONDS_BETWEEN_LOOKS)
    assert process.returncode == 0, (tmp_path / "said.txt").read_text()[-2000:]
    quarters = {name: part(looks, i / 4, (i + 1) / 4) for i, name in enumerate(("first", "second", "third", "fourth"))}
    write_json(tmp_path / "flat.json", {"steps": STEPS, "looks": len(looks), "quarters": quarters})
    before, after = quarters["second"], quarters["fourth"]
    assert after["memory_mib"] - before["memory_mib"] < 0.03 * before["memory_mib"]
    assert after["open_files"] <= before["open_files"]
    assert after["threads"] <= before["threads"]
    assert after["cpu_ms_per_step"] < 1.15 * before["cpu_ms_per_step"]

"""Every script of benchmarks/ in miniature: it runs and prints the JSON keys of the documentation."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import common
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from standin import random_weights
from tiny import TINY as TINY_RUN
from tiny import write_config

from sagan.data.dataset import PreparedData
from sagan.evaluation.extractors import as_file

ROOT = Path(__file__).parents[2]
TINY = "--set generator.channels=8 --set discriminator.channels=8 --set training.batch_size=4"
SCRIPTS = {  # arguments -> keys of the result
    f"step.py {TINY} --rounds 1 --variants plain,project,bf16": {"ratio_step", "gflops_project"},
    "attention.py --names self_attention,cbam --channels 16 --resolution 8 --batch-size 2 --explicit --rounds 1": {
        "ratio_time_cbam", "ratio_macs_self_attention", "peak_mib_conv3x3", "ratio_explicit",
    },
    f"data.py {TINY} --images 8 --steps 1": {"ratio_prepare", "ratio_wait"},
}  # fmt: skip
SLOW = {
    f"throughput.py {TINY} --batch-sizes 2 --precisions no,bf16": {"cells", "ratio_fastest"},
    f"memory.py {TINY} --resolutions 32": {"cells", "ratio_memory_32", "ratio_counted_32"},
    f"scaling.py {TINY} --steps 4 --rounds 1": {"ratio_efficiency", "images_per_second_2"},
    "sample.py --rounds 1": {"ratio_sample", "images_differ_by"},
    "sample.py --rounds 1 --startup": {"ratio_help_to_python", "ratio_sample_to_import_torch"},
    "evaluate.py --num 2 --rounds 1 --fid a b --inception-weights w.pth": {
        "ratio_features",
        "ratio_frechet",
        "ratio_fid",
    },
}


def load(script: str) -> ModuleType:
    """A script of benchmarks/ as a module; the folder itself is on sys.path (conftest.py)."""
    path = ROOT / "benchmarks" / script
    spec = spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(arguments: str, output: str) -> None:
    result = json.loads(output)
    assert result.keys() >= (SCRIPTS | SLOW)[arguments]
    assert all(value > 0 for key, value in result.items() if key.startswith("ratio_"))
    assert all(cell["state"] == "ok" for cell in result.get("cells", []))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("arguments", SCRIPTS)
def test_a_benchmark_prints_its_figures(arguments: str) -> None:
    script, *words = arguments.split()
    done = CliRunner().invoke(load(script).main, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    check(arguments, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", SLOW)
def test_a_benchmark_that_starts_processes_prints_its_figures(arguments: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = np.random.default_rng(seed).integers(256, size=(32, 32, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    if "w.pth" in arguments:
        (tmp_path / "w.pth").write_bytes(as_file(random_weights(0)).getvalue())
    script, *words = arguments.split()
    command = [sys.executable, ROOT / "benchmarks" / script, *words, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    check(arguments, done.stdout)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("step.py --variants nope", "'nope'"), ("step.py --variants tf32", "tf32"), ("step.py nope.yaml", "nope.yaml"),
     ("throughput.py --batch-sizes 4,x", "'x'"), ("memory.py --resolutions 48", "'48'")],
)  # fmt: skip
def test_a_mistake_is_named(arguments: str, named: str) -> None:
    script, *words = arguments.split()
    done = CliRunner().invoke(load(script).main, words)
    assert done.exit_code == 2
    assert named in done.output


def test_gpu_commands_are_kept_and_limited(tmp_path: Path) -> None:
    """A command with a result does not run again; one that takes too long is stopped and its output dropped."""
    gpu = load("gpu.py")
    for name, words, seconds, expected in (
        ("info", ["configs"], 100, "done"), ("info", ["nonsense"], 100, "already done"),
        ("wrong", ["nonsense"], 100, "exit code 2"), ("slow", ["step.py"], 0.1, "out of time"),
    ):  # fmt: skip
        assert gpu.run_command(gpu.Command(name, words, seconds, f"{name}.json"), tmp_path) == expected
    assert "shapes32" in (tmp_path / "info.json").read_text()
    assert not (tmp_path / "slow.json").exists()


@pytest.mark.slow
def test_the_gpu_plan_in_miniature(data: PreparedData, tmp_path: Path) -> None:
    """`sagan` and the benchmarks accept every command of the plan, and each finds its inputs."""
    gpu, out, weights = load("gpu.py"), tmp_path / "out", tmp_path / "weights.pth"
    config = write_config(tmp_path / "tiny.yaml", data, training=TINY_RUN["training"] | {"snapshot_every": 4})
    weights.write_bytes(as_file(random_weights(0)).getvalue())
    small = {"24000": "4", "50000": "8", "10000": "8", "4096": "2", "256,512,128": "4", "256": "4", "3": "1",
             "plain,project,tf32,bf16": "plain,project", "training.batch_size=64": "training.batch_size=1",
             "training.batch_size=32": "training.batch_size=1"}  # fmt: skip
    out.mkdir()
    for command in gpu.plan(out, data.folder, ["--inception-weights", str(weights)], str(config), steps=4):
        if command.name not in ("compiled", "step-mmgen128", "attention-64", "attention-128", "attention-256"):
            words = [small.get(word, word) for word in command.words]
            assert gpu.run_command(replace(command, words=words), out) == "done", command
    assert {"fid", "kid"} <= json.loads((out / "fid.json").read_text()).keys()


def test_variants_take_turns() -> None:
    """After one warm-up of each variant, every round runs all of them."""
    calls: list[str] = []
    seconds, warm_up = common.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3, repeat=1)
    assert calls == ["a", "b"] * 4
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}
    assert warm_up.keys() == {"a", "b"}


def test_statistics() -> None:
    assert common.ratio([2.0, 8.0, 3.0], [1.0, 1.0, 1.0]) == 3
    assert common.rates(10, {"x": [1.0, 2.0, 4.0]}) == {"images_per_second_x": 5.0, "spread_x": 3.0}


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    a = torch.ones(1024, 256)  # 1 MiB

    def step() -> None:
        b = a + 1
        c = b * 2
        del b
        (c + 1).sum()

    assert common.peak_mib(step, torch.device("cpu")) == pytest.approx(2, abs=1e-4)


def work(cell: str) -> common.Row:
    if cell == "hang":
        torch.multiprocessing.Event().wait()
    if cell == "die":
        os._exit(1)
    if cell in ("raise", "memory"):
        raise MemoryError if cell == "memory" else ValueError
    return {"value": cell}


@pytest.mark.slow
def test_failing_cells_do_not_stop_the_others() -> None:
    cells = ["a", "raise", "b", "memory", "die", "c", "hang", "d"]
    states = [row.get("value", row["state"]) for _, row in common.cells_in_processes(work, cells, 100, 20)]
    assert states == ["a", "failed", "b", "out of memory", "failed", "c", "out of time", "d"]

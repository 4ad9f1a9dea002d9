"""Every script of benchmarks/ in miniature: it runs and prints the JSON keys of the documentation."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import common
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from standin import random_weights
from tiny import files_of, lines_of

from sagan.config.load import load_config
from sagan.data.dataset import PreparedData
from sagan.evaluation.extractors import as_file
from sagan.runs.snapshot import load_snapshot
from sagan.training import graphs
from sagan.utils.errors import UserError

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
    f"memory.py {TINY} --resolutions 32": {"cells", "ratio_memory_32", "ratio_counted_32"},
    f"scaling.py {TINY} --steps 4 --rounds 1": {"ratio_efficiency", "images_per_second_2"},
    "sample.py --rounds 1": {"ratio_sample", "images_differ_by"},
    "sample.py --rounds 1 --startup": {"ratio_help_to_python", "ratio_sample_to_import_torch"},
    "evaluate.py --num 2 --rounds 1 --inception-weights w.pth": {"ratio_features", "ratio_frechet"},
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
     ("attention.py --names cbam,x", "'x'"), ("memory.py --resolutions 48", "'48'")],
)  # fmt: skip
def test_a_mistake_is_named(arguments: str, named: str) -> None:
    script, *words = arguments.split()
    done = CliRunner().invoke(load(script).main, words)
    assert done.exit_code == 2
    assert named in done.output


def call_gpu(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(load("gpu.py").main, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.output


def test_packed_data_is_restored_or_refused(data: PreparedData, tmp_path: Path) -> None:
    given, first, second = tmp_path / "pack", tmp_path / "first", tmp_path / "second"
    call_gpu("pack", data.folder, "--out", given)
    for folder, name in ((first, "half-1.npz"), (second, "half-2.npz")):
        folder.mkdir()
        (given / name).rename(folder / name)
    call_gpu("unpack", second, first, "--out", tmp_path / "whole")
    for name in ("images.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (data.folder / name).read_bytes()

    call_gpu("unpack", first, "--out", tmp_path / "half")
    half = PreparedData.open(tmp_path / "half")
    assert half.manifest.class_counts == tuple(count // 2 for count in data.manifest.class_counts)
    assert half.manifest.content_hash == load("gpu.py").content_hash(np.array(half.images), half.labels)
    kept = {image.tobytes() for image in data.images}
    assert all(image.tobytes() in kept for image in half.images)

    with np.load(second / "half-2.npz") as file:
        arrays = dict(file)
    np.savez(second / "half-2.npz", allow_pickle=False, **{**arrays, "labels": np.roll(arrays["labels"], 1)})
    message = call_gpu("unpack", first, second, "--out", tmp_path / "wrong", code=2)
    assert "content hash" in message
    (second / "half-2.npz").write_bytes((first / "half-1.npz").read_bytes()[:-1000])
    message += call_gpu("unpack", first, second, "--out", tmp_path / "wrong", code=2)
    assert "damaged" in message
    message += call_gpu("record", "--pack", first, "--work", tmp_path / "work", "--out", tmp_path / "out", code=2)
    assert "half-2.npz is not in" in message
    assert len(message.splitlines()) == 3
    assert not (tmp_path / "wrong").exists()


def test_a_run_comes_back_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the checkpoints, with the newest snapshot; a lost part is noticed."""
    gpu, run, out = load("gpu.py"), tmp_path / "run", tmp_path / "out"
    files = ["config.yaml", "log.jsonl", "samples/00000002.png", "snapshots/00000002/model.safetensors"]
    for name in [*files, "snapshots/00000001/model.safetensors", "checkpoints/00000002/generator.safetensors"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(np.random.default_rng(len(name)).bytes(60_000))
    out.mkdir()
    monkeypatch.setattr(gpu, "PART", 100_000)
    gpu.send(run, out, [])
    sizes = [path.stat().st_size for path in out.glob("run.tar.*")]
    assert len(sizes) == 3
    assert max(sizes) <= 100_000
    call_gpu("restore", out, "--out", tmp_path / "back")
    assert files_of(tmp_path / "back") == {name: (run / name).read_bytes() for name in files}
    (out / "run.tar.1").write_bytes(b"")
    assert "record.json" in call_gpu("restore", out, "--out", tmp_path / "back", code=2)


def test_what_a_check_reports(tmp_path: Path) -> None:
    """That it ran, its error or that it took too long."""
    gpu = load("gpu.py")
    for words, seconds, state in (
        (["configs"], 100, "ran"), (["train", "nope.yaml", "--out", "x"], 100, "failed: sagan: nope.yaml: no such"),
        (["--help"], 0.01, "failed: out of time"),
    ):  # fmt: skip
        assert gpu.run_check("name", words, tmp_path, seconds)["state"].startswith(state)
    error = "torch.AcceleratorError: CUDA error: device-side assert"
    assert gpu.last_error(f"Traceback:\n  File\n{error}\nCompile with `TORCH_USE_CUDA_DSA`\n") == error
    assert gpu.last_error("Killed\n") == "Killed"


def test_the_record_takes_the_fastest_sound_cell_of_its_batch_size(tmp_path: Path) -> None:
    gpu = load("gpu.py")
    options = SimpleNamespace(work=tmp_path, images_per_second=None)
    assert gpu.chosen(options, 128) == (True, 5000.0)
    cells = [
        {"batch_size": size, "cuda_graphs": graphs, "compiled": False, "sound": sound, "images_per_second": rate}
        for size, graphs, sound, rate in ((128, False, True, 1), (128, True, True, 3), (256, True, True, 5),
                                          (512, False, True, 2), (512, True, False, 9))
    ]  # fmt: skip
    cells += [{**cells[0], "compiled": True, "images_per_second": 7}, {**cells[0], "sound": False, "state": "failed"}]
    (tmp_path / "first.json").write_text(json.dumps({"cells": cells}))
    assert [gpu.chosen(options, size) for size in (128, 256, 512)] == [(True, 3), (True, 5), (False, 2)]
    (tmp_path / "first.json").write_text(json.dumps({"cells": cells[:1]}))
    assert gpu.chosen(options, 128) == (True, 5000.0)


@pytest.mark.parametrize("crashes", [0, 1, 2])
def test_the_record_ends_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: int) -> None:
    """Its last step follows from the rate before the pause, not from the guess; a crash costs the CUDA graphs."""
    gpu, clock, legs = load("gpu.py"), [7.0], []
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(gpu, "receive", lambda options, halves: tmp_path)

    def train(words: list[str], run: Path, out: Path, begin: int, until: float) -> dict:
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        legs.append(settings)
        if len(legs) <= crashes:
            clock[0] += 9
            return {"state": "failed: RuntimeError"}
        steps = min(int((until - clock[0] - 20) / 0.05), int(settings["training.steps"]) - begin)
        clock[0] += 20 + 0.05 * steps
        (run / "checkpoints" / f"{begin + steps:08d}").mkdir(parents=True)
        finished = begin + steps == int(settings["training.steps"])
        return {"state": "ran" if finished else "stopped", "step_seconds": 0.05, "start_seconds": 20}

    monkeypatch.setattr(gpu, "train", train)
    options = SimpleNamespace(out=tmp_path / "out", work=tmp_path, config="cifar10", changes=(), seconds=None,
                              batch=(512,), images_per_second=99_999)  # fmt: skip
    with pytest.raises(UserError) if crashes == 2 else nullcontext():
        gpu.record(options)
    expected = {0: ["true", "true"], 1: ["true", "false", "false"], 2: ["true", "false"]}
    assert [leg["training.cuda_graphs"] for leg in legs] == expected[crashes]
    assert {float(leg["optim.generator.lr"]) for leg in legs} == {4e-4}  # twice the config's, at four times its batch
    if crashes < 2:
        assert clock[0] == pytest.approx(7 + 560, abs=0.1)
        last = legs[-1]
        assert float(last["optim.decay_start"]) == pytest.approx(int(last["training.steps"]) / 3, abs=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rehearsal_of_a_gpu_run(data: PreparedData, tmp_path: Path) -> None:
    """From the packed data to the files that come back: within their limits, and a run that sagan can use."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "rehearse", data.folder, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    first, record, third = (json.loads((tmp_path / f"back/{name}.json").read_text()) for name in
                            ("first", "record", "third"))  # fmt: skip
    assert {row["state"] for row in first["checks"].values()} == {"ran"}
    assert first["checks"].keys() > {"float32", "tf32", "bf16", "cuda_graphs", "r1", "sample", "attend"}
    assert max(first["checks"]["float32"]["losses_differ_by"]) < 1e-3
    assert [cell["sound"] for cell in first["cells"]] == [True]
    assert record["legs"][0]["state"] == "stopped"
    assert record["legs"][1]["from"] > 0
    assert [row["state"] for row in third.values()] == ["ok"] * 4
    assert third["cifar10"]["ratio_bf16_to_plain"] > 0
    back = [path for path in (tmp_path / "back").iterdir() if path.stem not in ("first", "third")]
    assert len(back) <= 8
    assert all(path.stat().st_size <= 16 << 20 for path in back)
    assert load_snapshot(tmp_path / "run").num_classes == data.manifest.num_classes
    log = lines_of(tmp_path / "run/log.jsonl")
    assert log[-1]["step"] > record["legs"][1]["from"]


@pytest.mark.usefixtures("alone")
def test_recorded_updates_of_the_benchmark_are_the_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the graphs; the separate passes of the plain form give nearly the same losses."""
    step, losses = load("step.py"), {}
    monkeypatch.setattr(graphs, "CudaGraph", lambda function, parameters: SimpleNamespace(replay=function))
    changes = ["generator.channels=8", "discriminator.channels=8", "training.batch_size=4", "optim.d_steps=2",
               "loss.consistency.reals=10", "data.num_classes=4"]  # fmt: skip
    for name in ("project", "cuda_graphs", "plain"):
        training = step.TrainingStep(load_config(None, changes), torch.device("cpu"), step.VARIANTS[name])
        losses[name] = [[value.item() for value in training().values()] for _ in range(5)]
        assert (training.graphs is None) == (name != "cuda_graphs")
    assert losses["cuda_graphs"] == losses["project"]
    assert losses["plain"][0][0] == pytest.approx(losses["project"][0][0], rel=0.2)


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
    states = [row.get("value", row["state"]) for _, row in common.cells_in_processes(work, cells, 600, 45)]
    assert states == ["a", "failed", "b", "out of memory", "failed", "c", "out of time", "d"]

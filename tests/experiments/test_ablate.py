"""`sagan ablate`: variants and their names, the runs it trains, the record, the table and the picture."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from command_line import sagan
from tiny import TINY, files_of
from written_runs import protocol, write_run

from sagan.attention import ATTENTION
from sagan.config.load import load_config, make_config
from sagan.data.dataset import PreparedData
from sagan.experiments.ablate import SAGAN
from sagan.experiments.ablation import Ablation, RunState, merged, parse_axis, plan_ablation, read_ablation, variants_of
from sagan.experiments.ablation_report import report, samples_and_attention
from sagan.models.generator import build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot
from sagan.utils.errors import UserError
from sagan.utils.images import read_png
from sagan.utils.io import append_json_line

PLACE, STEPS = "generator.attention.8", 20
VARY = ["--vary", f"{PLACE}+discriminator.attention.8=self_attention,null"]
pytestmark = pytest.mark.usefixtures("alone")
TRAINER = """
import os, pathlib, shutil, signal, sys, time

def main():
    _, _, config, _, run, _, seed = sys.argv  # -c train CONFIG --out RUN --set seed=N
    name, run = pathlib.Path(config).stem, pathlib.Path(run)
"""


def stand_in(folder: Path, body: str) -> None:
    """A package `sagan` in `folder`, for processes that start there: it trains by `body`, without torch."""
    (folder / "sagan").mkdir()
    (folder / "sagan" / "__init__.py").touch()
    (folder / "sagan" / "cli.py").write_text(TRAINER + "".join(f"    {line}\n" for line in body.splitlines()))


def ablate(folder: Path, *arguments: object) -> int:
    """The exit code of `sagan ablate config.yaml ARGUMENTS --out FOLDER/out` in `folder`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    with contextlib.chdir(folder):
        return sagan("ablate", "config.yaml", *arguments, "--out", folder / "out")


def write_config(path: Path, data: PreparedData | None = None, steps: int = STEPS) -> Path:
    groups = {
        **TINY,
        "data": {"source": str(data.folder) if data else "shapes:40"},
        "training": {**TINY["training"], "steps": steps, "batch_size": 4, "checkpoint_every": 5},
        "evaluate": {"every": steps, "num": 4, "metrics": ["coherence"]},
    }
    path.write_text(yaml.safe_dump(groups))
    return path


def finish(run: Path, fid: float, gamma: float | None, **changes: Any) -> None:
    """Write a finished run: evaluated at half its steps and at the last, then once more by another command."""
    write_run(run)
    (run / "snapshots" / f"{STEPS:08d}").mkdir(parents=True)
    for step, rate, value in ((5, 10.0, None), (10, 90.0, 7.0), (STEPS, 30.0, gamma)):
        line = {"step": step, "images_per_second": rate, "memory_mib": float(step), "d_loss": 1.0}
        health = {"g_gamma/attention.8x8": value, "g_entropy/attention.8x8": 0.5, "d_gamma/trunk.16x16": -0.001}
        append_json_line(run / "log.jsonl", line | (health if value is not None else {}))
    for step, score in ((10, 999.0), (STEPS, fid), (STEPS, 0.5)):
        scores = {"fid": score, "kid_std": 1.0, "recall": 0.5}
        append_json_line(run / "metrics.jsonl", {"step": step, **scores, "protocol": protocol(**changes)})


# --- runs of a stand-in trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, by the names of the variants of `VARY`."""
    folder = tmp_path_factory.mktemp("trained")
    plan = plan_ablation(folder, str(write_config(folder / "config.yaml")), [VARY[1]], None, [])
    for name, config in plan.configs.items():
        finish(folder / name, 10.0, 0.25 if name == "self_attention" else None)
        save_snapshot(remove_spectral_norm(build_generator(config, 4)), folder / name / "snapshots" / f"{STEPS:08d}")
    return folder


@pytest.fixture(scope="module")
def ablated(data: PreparedData, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, a finished ablation in `out`, and what it printed."""
    folder = tmp_path_factory.mktemp("ablated")
    write_config(folder / "config.yaml", data)
    stand_in(folder, f"shutil.copytree({str(trained)!r} + '/' + name, run)")
    with contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stack.enter_context(redirect(stack.enter_context(open(folder / name, "w"))))
        assert ablate(folder, *VARY, "--json", "--jobs", "2") == 0
    return folder


def test_one_object_with_every_variant(ablated: Path) -> None:
    found = json.loads((ablated / "stdout").read_text())
    attentive, plain = found["variants"]
    for name, one in (("self_attention", attentive), ("none", plain)):
        assert (one["name"], one["n"], one["seeds"], one["steps"]) == (name, 1, [0], [STEPS])
        assert one["scores"]["fid"] == {"mean": 10.0, "std": None, "values": [10.0]}
        assert one["peak_mib"]["mean"] > 1
        assert one["protocol"]["num"] == 10000
    assert attentive["parameters"]["generator"] > plain["parameters"]["generator"] > 0
    assert found["notes"] == []
    assert json.loads((ablated / "out" / "ablation.json").read_text())["results"] == found
    assert {"[1/2] self_attention, seed 0", "[2/2] none, seed 0"} <= {*(ablated / "stderr").read_text().splitlines()}


def test_table_and_picture(ablated: Path) -> None:
    text = (ablated / "out" / "ablation.md").read_text()
    assert "\n| self_attention | 1 | " in text
    assert "\n| none | 1 | " in text
    assert text.endswith("![samples and attention](ablation.png)\n")
    picture = read_png(ablated / "out" / "ablation.png")
    upper, lower = np.array_split(picture, 2)
    assert ((upper.max(2).astype(int) - upper.min(2) > 60).sum(1) > 20).any()  # the dots of the points
    middle = picture.shape[1] // 2
    assert middle > 500
    assert (upper[:, middle:] < 250).any()
    assert (lower[len(lower) // 2 :, middle:] >= 250).all()  # without attention there are no maps


def test_a_finished_ablation_is_shown_again(ablated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ablated / "out"
    before = files_of(out)
    assert ablate(ablated, *VARY) == 0
    by_command = capsys.readouterr()
    assert sagan("ablate", out) == 0
    assert capsys.readouterr().out == by_command.out
    assert files_of(out) == before
    assert "self_attention" in by_command.out
    assert by_command.err == ""
    assert sagan("ablate", out, "--seeds", "0-1") == 2
    assert capsys.readouterr().err.startswith("sagan: --seeds: ")


def test_a_variant_that_fails_does_not_end_the_others(
    data: PreparedData, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path / "config.yaml", data)
    body = f"""\
if name == "lr=1.0":
    sys.exit("sagan: g_loss is nan\\nat exit")
if name == "lr=0.5":
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copytree({str(trained / "none")!r}, run)"""
    stand_in(tmp_path, body)
    assert ablate(tmp_path, "--vary", "optim.generator.lr=1.0,0.5,0.1") == 1
    assert "lr=1.0-seed0 failed: g_loss is nan\n" in capfd.readouterr().err
    text = (tmp_path / "out" / "ablation.md").read_text()
    for line in ("| lr=1.0 | 0 | - |", "| lr=0.1 | 1 | ", "failed: lr=0.5, seed 0: killed by SIGKILL",
                 "failed: lr=1.0, seed 0: g_loss is nan (output/lr=1.0-seed0.txt)"):  # fmt: skip
        assert f"\n{line}" in text
    assert ablate(tmp_path, "--vary", "optim.generator.lr=0.1", "--seeds", "0-1") == 0
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "\n| lr=0.1 | 2 | " in text
    assert "\nfailed: lr=1.0, seed 0: g_loss is nan" in text
    assert "[1/1] lr=0.1, seed 1\n" in capfd.readouterr().err


def test_devices_train_one_run_each(data: PreparedData, trained: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", data)
    body = f"""\
device = pathlib.Path("device" + os.environ["CUDA_VISIBLE_DEVICES"])
device.mkdir()  # fails while another run has it
time.sleep(0.3)
shutil.copytree({str(trained / "none")!r}, run)
device.rename(str(device) + run.name)"""
    stand_in(tmp_path, body)
    assert ablate(tmp_path, "--vary", "loss.r1=0,1", "--seeds", "0-1", "--devices", "0, 3") == 0
    used = sorted(path.name[6:] for path in tmp_path.glob("device*"))
    assert [name[0] for name in used] == ["0", "0", "3", "3"]
    assert sorted(name[1:] for name in used) == [f"r1={r1}-seed{seed}" for r1 in (0, 1) for seed in (0, 1)]


@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
def test_a_signal_lets_the_runs_save(
    number: str, data: PreparedData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They get SIGTERM: a terminal sends SIGINT to the runs, too, and a second one would kill them."""
    write_config(tmp_path / "config.yaml", data)
    body = f"""\
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(each, lambda received, frame: sys.exit(signal.Signals(received).name))
os.kill(os.getppid(), signal.{number})
time.sleep(60)"""
    stand_in(tmp_path, body)
    assert ablate(tmp_path, "--vary", "loss.r1=0,1") == 128 + signal.Signals[number]
    shown = capfd.readouterr()
    assert "r1=0-seed0 stopped: run the same command again to resume\n" in shown.err
    assert "not done yet: r1=0 (seed 0), r1=1 (seed 0)" in shown.out
    outputs = (tmp_path / "out" / "output").iterdir()
    assert {path.name: path.read_text() for path in outputs} == {"r1=0-seed0.txt": "SIGTERM\n"}


def test_a_run_stops_when_its_ablation_is_killed(tmp_path: Path) -> None:
    """The pipe on its stdin closes."""
    stand_in(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint(flush=True)\ntime.sleep(60)")
    command = [sys.executable, "-c", SAGAN, "train", "c.yaml", "--out", "run", "--set", "seed=0"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=50) == 7


# --- runs of `sagan train`


def started(*command: object) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-c", "from sagan.cli import main; main()", *map(str, command)]
    return subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_runs_are_those_of_sagan_train(data: PreparedData, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", data, steps=2)
    with started("ablate", config, *VARY, "--out", tmp_path / "out", "--jobs", "2") as process:
        assert process.wait(timeout=300) == 0
    assert sagan("train", config, "--out", tmp_path / "run", "--set", f"{PLACE}=null", "--set",
                 "discriminator.attention.8=null") == 0  # fmt: skip
    run = tmp_path / "out" / "runs" / "none-seed0"
    for part in ("snapshots", "samples", "checkpoints"):
        assert files_of(run / part) == files_of(tmp_path / "run" / part)
    assert load_config(run / "config.yaml") == load_config(tmp_path / "run" / "config.yaml")
    first, second = json.loads((tmp_path / "out" / "ablation.json").read_text())["results"]["variants"]
    assert first["attention"].keys() >= {"g_gamma/attention.8x8", "d_entropy/trunk.attention.8x8"}
    assert second["attention"] == {}
    assert second["peak_mib"]["mean"] > 100


@pytest.mark.slow
def test_a_killed_ablation_resumes(data: PreparedData, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "config.yaml", data, steps=60), tmp_path / "out"
    run, command = out / "runs" / "self_attention-seed0", ["ablate", config, "--vary", f"{PLACE}=self_attention"]
    log = run / "log.jsonl"
    with started(*command, "--out", out) as process:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 12)
        process.kill()
    with open(run / ".lock", "w") as lock:  # until the run has saved and ended
        wait_for(lambda: _locked(lock.fileno()))
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert not (run / "snapshots" / "00000060").exists()
    assert sagan(*command, "--out", out) == 0
    assert "resumed from step " in (out / "output" / "self_attention-seed0.txt").read_text()
    assert len(log.read_text().splitlines()) == 60
    assert "\n| self_attention | 1 | " in (out / "ablation.md").read_text()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _locked(file: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


# --- what varies


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yaml")


def plan(config: Path, *vary: str, seeds: str | None = None, overrides: tuple[str, ...] = ()) -> Ablation:
    """An ablation in `out` beside the config."""
    return plan_ablation(config.parent / "out", str(config), vary, seeds, overrides)


def names(*axes: str) -> list[str]:
    return [*variants_of([parse_axis(text) for text in axes])]


def test_values_are_yaml_split_at_the_outer_commas() -> None:
    keys, values = parse_axis("a.16+b.16=self_attention, {name: non_local, pool: after},null,[1, 2],0.5,true")
    assert keys == ("a.16", "b.16")
    assert values == ["self_attention", {"name": "non_local", "pool": "after"}, None, [1, 2], 0.5, True]
    assert variants_of([(keys, values)])["non_local,pool=after"] == dict.fromkeys(keys, values[1])
    assert parse_axis("a=x=y")[1] == ["x=y"]


def test_variants_have_short_names_that_folders_can_have() -> None:
    assert names(f"{PLACE}=self_attention,{{name: non_local, pool: after}},null,{{name: cbam}}") == [
        "self_attention", "non_local,pool=after", "none", "cbam",
    ]  # fmt: skip
    assert names("generator.attention={},{8: cbam, 16: non_local}", "generator.widths=[4, 2],[8]") == [
        f"attention={attention}+widths={widths}"
        for attention in ("none", "8=cbam,16=non_local")
        for widths in ("4,2", "8")
    ]
    assert names("optim.generator.lr=0.1,1.0e-5") == ["lr=0.1", "lr=1e-05"]
    assert names("generator.attention.8=null,cbam", "discriminator.attention.8=null,cbam")[:2] == [
        "generator=none+discriminator=none",
        "generator=none+discriminator=cbam",
    ]
    assert names(f"{PLACE}=null", "optim.generator.lr=0.1") == ["attention.8=none+lr=0.1"]
    odd = names("data.source=a/b,a_b,../c,''", f"{PLACE}=null")
    assert len(set(odd)) == 4
    assert all("/" not in name and not name.startswith((".", "-")) for name in odd)
    assert len(names("a=" + "x" * 500)[0]) <= 100


def test_several_settings_give_every_combination(planned: Path) -> None:
    found = plan(planned, f"{PLACE}=null,self_attention", "optim.generator.lr=0.1,0.2", seeds="3,5")
    rates = [(bool(c.generator.attention), c.optim.generator.lr) for c in found.configs.values()]
    assert rates == [(False, 0.1), (False, 0.2), (True, 0.1), (True, 0.2)]
    assert [seed for _, seed in found.runs] == [3] * 4 + [5] * 4
    assert [*plan(planned, "loss.r1=1", overrides=("seed=7",)).runs] == [("r1=1", 7)]


# --- the record


def test_values_and_seeds_can_be_added(planned: Path) -> None:
    first = merged(plan(planned, f"{PLACE}=self_attention,null", seeds="0"))
    done = RunState(variant="none", seed=0, state="failed", reason="because", seconds=2.5, peak_mib=10.0)
    first.runs["none", 0], first.parameters = done, {"none": (3, 4)}
    first.save({"found": 1})
    assert read_ablation(first.folder) == first
    vary, changes = f"{PLACE}=null,{{name: self_attention, pool: false}}", ("training.device=auto", "seed=9")
    both = merged(plan(planned, vary, seeds="0-1", overrides=changes))
    assert [*both.variants] == ["self_attention", "none", "self_attention,pool=false"]
    assert both.runs["none", 0] == done
    assert len(both.runs) == 5
    assert both.parameters == first.parameters


@pytest.mark.parametrize(
    ("vary", "override", "expected"),
    [
        (f"{PLACE}=null", "training.steps=7", "another config (training.steps: 20 there, 7 now)"),
        (f"{PLACE}=null", "evaluate.num=5", "another config (evaluate.num: 4 there, 5 now)"),
        ("loss.r1=0,1", "seed=0", f"an ablation of {PLACE}, not of loss.r1"),
        (f"{PLACE}={{name: self_attention, pool: true}},{{name: self_attention, place: after}}", "seed=0",
         "the variants self_attention and self_attention,place=after are the same"),
    ],
    ids=["steps", "scores", "keys", "same"],
)  # fmt: skip
def test_another_plan_is_refused(planned: Path, vary: str, override: str, expected: str) -> None:
    first = merged(plan(planned, f"{PLACE}=self_attention,null"))
    first.save({})
    before = files_of(first.folder)
    with pytest.raises(UserError) as caught:
        merged(plan(planned, vary, overrides=(override,)))
    assert expected in str(caught.value)
    assert files_of(first.folder) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"keys": [], "variants": [], "runs": [], "config": {}}'])
def test_a_damaged_record_is_named(planned: Path, content: str) -> None:
    found = plan(planned, "loss.r1=0,1")
    found.folder.mkdir()
    (found.folder / "ablation.json").write_text(content)
    with pytest.raises(UserError, match=r"ablation\.json: "):
        merged(found)


# --- table and picture


@pytest.fixture
def found(tmp_path: Path) -> Ablation:
    """Three variants: two finished seeds, one, and one that failed and one that waits."""
    config = make_config({"training": {"steps": STEPS}, "evaluate": {"num": 10}})
    variants = {name: {"a.b": name} for name in ("pooled", "plain|x", "broken")}
    ablation = Ablation(tmp_path, config, variants, dict.fromkeys(variants, config))
    ablation.parameters = {"pooled": (12345, 678), "plain|x": (1, 2)}
    for name, seed, fid, gamma in (("pooled", 0, 10.0, 0.25), ("pooled", 1, 14.0, 0.75), ("plain|x", 0, 13.0, None)):
        finish(ablation.run_folder((name, seed)), fid, gamma)
        peak = 321.0 if seed == 0 else None
        ablation.runs[name, seed] = RunState(variant=name, seed=seed, state="done", seconds=12.0, peak_mib=peak)
    ablation.runs["broken", 0] = RunState(variant="broken", seed=0, state="failed", reason="g_loss is nan")
    ablation.runs["broken", 1] = RunState(variant="broken", seed=1, state="stopped")
    return ablation


def reported(ablation: Ablation) -> tuple[dict[str, Any], str]:
    """The results and the Markdown."""
    report(ablation, as_json=False, picture=False)
    results = json.loads((ablation.folder / "ablation.json").read_text())["results"]
    return results, (ablation.folder / "ablation.md").read_text()


def test_numbers_are_those_of_the_last_step(found: Ablation) -> None:
    results, text = reported(found)
    pooled, plain, broken = results["variants"]
    assert pooled["scores"]["fid"] == {"mean": 12.0, "std": pytest.approx(8**0.5), "values": [10.0, 14.0]}
    assert pooled["scores"]["kid_std"]["values"] == [1.0, 1.0]
    assert pooled["images_per_second"]["values"] == [30.0, 30.0]
    assert pooled["peak_mib"]["values"] == [321.0, STEPS]  # of the process, else of the log
    assert pooled["attention"]["g_gamma/attention.8x8"]["values"] == [0.25, 0.75]
    assert pooled["parameters"] == {"generator": 12345, "discriminator": 678}
    assert (pooled["seeds"], plain["scores"]["fid"]["std"], broken["n"]) == ([0, 1], None, 0)
    assert results["notes"] == [
        "failed: broken, seed 0: g_loss is nan (output/broken-seed0.txt)", "not done yet: broken (seed 1)",
    ]  # fmt: skip
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for begin in ("| pooled | 2 | **12.00 ± 2.83** | ", "| plain\\|x | 1 | 13.00 | ", "| broken | 0 | - | "):
        assert any(row.startswith(begin) for row in rows), begin
    assert len({row.count(" | ") for row in rows}) == 1


def test_scores_of_different_protocols_have_no_best(found: Ablation) -> None:
    path = found.run_folder(("plain|x", 0)) / "metrics.jsonl"
    path.unlink()
    append_json_line(path, {"step": STEPS, "fid": 1.0, "protocol": protocol(num=5)})
    results, text = reported(found)
    assert results["notes"][0].startswith("fid: ")
    assert "**" not in text


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.jsonl"])
def test_missing_numbers_are_named(name: str, found: Ablation) -> None:
    (found.run_folder(("pooled", 0)) / name).write_text("")
    with pytest.raises(UserError, match=rf"pooled-seed0/{name}: "):
        reported(found)


@pytest.mark.parametrize("name", ["none", *ATTENTION])
def test_every_mechanism_can_be_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagan.experiments.ablation_report.SAMPLES", 4)
    attention = "{}" if name == "none" else f"{{16: {name}}}"
    config = make_config({"generator": {"channels": 8, "widths": [2, 2, 2, 2]}}, [f"generator.attention={attention}"])
    grid, *maps = samples_and_attention(remove_spectral_norm(build_generator(config, 4)))
    assert grid.min() < 250
    assert len(maps) == (name not in ("none", "residual_block"))
    assert all((image < 250).any() for image in maps)

"""`sagan ablate`: what varies and under which names, the runs it trains, its table and picture."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command_line import sagan
from tiny import TINY, files_of
from written_runs import protocol

from sagan.attention import ATTENTION
from sagan.config.load import load_config, make_config
from sagan.data.dataset import PreparedData
from sagan.experiments.ablate import parse_slots
from sagan.experiments.ablation import RunRecord, make_plan, merged, parse_axis, read_ablation, variants_of
from sagan.experiments.ablation_report import Row, Run, ablation_picture, columns_of, report
from sagan.experiments.table import text_table
from sagan.models.generator import build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot
from sagan.utils.errors import UserError
from sagan.utils.images import read_png
from sagan.utils.io import append_json_line

VARY = ["--vary", "generator.attention.8+discriminator.attention.8=self_attention,null"]
SCORES = ("coherence", "two_objects", "hue_agreement", "shape_agreement")

PLACE = "generator.attention.8"
STEPS = 20
pytestmark = pytest.mark.usefixtures("alone")


def write_config(path: Path, data: PreparedData, steps: int = 2) -> Path:
    groups = {
        **TINY,
        "data": {"source": str(data.folder)},
        "training": {**TINY["training"], "steps": steps, "batch_size": 4, "checkpoint_every": 5},
        "evaluate": {"every": steps, "num": 4, "metrics": ["coherence"]},
    }
    path.write_text(yaml.safe_dump(groups))
    return path


@pytest.fixture(scope="module")
def ablated(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, and a whole ablation in `out`, its runs trained at the same time; and what it said."""
    folder = tmp_path_factory.mktemp("ablated")
    config = write_config(folder / "config.yaml", data)
    command = ["ablate", config, *VARY, "--out", folder / "out", "--json", "--jobs", "2"]
    done = started(*command)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    (folder / "stdout").write_text(out)
    (folder / "stderr").write_text(err)
    return folder


def started(*command: object) -> "subprocess.Popen[str]":
    """`sagan COMMAND` in a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-c", "from sagan.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition: object, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 200
    assert callable(condition)
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_object_with_every_variant(ablated: Path) -> None:
    found = json.loads((ablated / "stdout").read_text())
    assert [one["name"] for one in found["variants"]] == ["self_attention", "none"]
    for one in found["variants"]:
        assert (one["n"], one["seeds"], one["steps"]) == (1, [0], [2])
        assert set(SCORES) <= one["scores"].keys()
        assert one["peak_mib"]["mean"] > 100
        assert one["images_per_second"]["mean"] > 0
        assert one["protocol"]["num"] == 4
    attentive, plain = found["variants"]
    assert attentive["parameters"]["generator"] > plain["parameters"]["generator"] > 0
    assert attentive["attention"].keys() >= {"g_gamma/attention.8x8", "d_entropy/trunk.attention.8x8"}
    assert plain["attention"] == {}
    assert found["notes"] == []
    assert json.loads((ablated / "out" / "ablation.json").read_text())["results"] == found
    said = (ablated / "stderr").read_text()
    assert "[1/2] self_attention, seed 0\n" in said
    assert "[2/2] none, seed 0\n" in said


def test_the_runs_are_those_of_sagan_train(ablated: Path, tmp_path: Path) -> None:
    assert sagan("train", ablated / "config.yaml", "--out", tmp_path / "run", "--set", "generator.attention.8=null",
                 "--set", "discriminator.attention.8=null") == 0  # fmt: skip
    run = ablated / "out" / "runs" / "none-seed0"
    for part in ("snapshots", "samples", "checkpoints"):
        assert files_of(run / part) == files_of(tmp_path / "run" / part)
    assert load_config(run / "config.yaml") == load_config(tmp_path / "run" / "config.yaml")


def test_table_and_picture(ablated: Path) -> None:
    text = (ablated / "out" / "ablation.md").read_text()
    assert "\n| self_attention | 1 | " in text
    assert "\n| none | 1 | " in text
    assert text.endswith("![samples and attention](ablation.png)\n")
    picture = read_png(ablated / "out" / "ablation.png")
    height, width = picture.shape[:2]
    colourful = (picture.max(2).astype(int) - picture.min(2) > 60).sum(1)  # the dots of the points
    assert colourful[: height // 2].max() > 20
    assert width > 1000
    right = picture[:, width // 2 :]
    assert (right[: height // 2] < 250).any()
    assert (right[3 * height // 4 :] >= 250).all()  # without attention there is nothing to show


def test_a_finished_ablation_is_shown_again(ablated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ablated / "out"
    before = files_of(out)
    assert sagan("ablate", ablated / "config.yaml", *VARY, "--out", out) == 0
    by_command = capsys.readouterr()
    assert files_of(out) == before
    assert sagan("ablate", out) == 0
    assert capsys.readouterr().out == by_command.out
    assert files_of(out) == before
    assert "self_attention" in by_command.out
    assert by_command.err == ""
    assert sagan("ablate", out, "--seeds", "0-1") == 2
    assert "to continue it name its config" in capsys.readouterr().err


def test_a_variant_that_cannot_be_built_is_refused(ablated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files_of(ablated / "out")
    vary = "generator.attention.8+discriminator.attention.8=self_attention,null,{name: self_attention, heads: 2}"
    assert sagan("ablate", ablated / "config.yaml", "--vary", vary, "--out", ablated / "out") == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("sagan: variant self_attention,heads=2: generator.attention.8: self_attention has no ")
    assert shown.err.count("\n") == 1
    assert files_of(ablated / "out") == before


def test_a_variant_that_fails_does_not_end_the_others(
    data: PreparedData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = write_config(tmp_path / "config.yaml", data), tmp_path / "out"
    vary = ["--vary", "optim.generator.lr=1.0e+30,0.001", "--out", out]
    assert sagan("ablate", config, *vary) == 1
    shown = capfd.readouterr()
    assert "lr=1e+30-seed0 failed: " in shown.err
    text = (out / "ablation.md").read_text()
    assert "\n| lr=1e+30 | 0 | - |" in text
    assert "\n| lr=0.001 | 1 | " in text
    (line,) = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: lr=1e+30, seed 0: ")
    assert "at step 2; stopped" in line
    file = out / line.rpartition("(")[2].rstrip(")")
    assert "at step 2; stopped" in file.read_text()
    before = files_of(out / "runs" / "lr=0.001-seed0")
    assert sagan("ablate", config, "--vary", "optim.generator.lr=0.001", "--seeds", "0-1", "--out", out) == 0
    text = (out / "ablation.md").read_text()
    assert "\n| lr=0.001 | 2 | " in text
    assert line in text
    assert files_of(out / "runs" / "lr=0.001-seed0") == before


@contextmanager
def going(config: Path, out: Path, least: int) -> "Iterator[subprocess.Popen[str]]":
    """The ablation of one variant, once its run has logged `least` steps in this process."""
    log = out / "runs" / "self_attention-seed0" / "log.jsonl"
    start = len(log.read_text().splitlines()) if log.exists() else 0
    key = "generator.attention.8=self_attention"
    with started("ablate", config, "--vary", key, "--out", out) as process:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= start + least, process)
        yield process


def test_ctrl_c_saves_and_shows_what_is_done(data: PreparedData, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "config.yaml", data, steps=400), tmp_path / "out"
    with going(config, out, least=1) as process:
        (run,) = psutil.Process(process.pid).children()
        run.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "self_attention-seed0 stopped: run the same command again to resume" in said
    assert "not done yet: self_attention (seed 0)" in shown
    (checkpoint,) = (out / "runs" / "self_attention-seed0" / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name) < 400


def test_a_killed_ablation_ends_its_runs(data: PreparedData, tmp_path: Path) -> None:
    """No training outlives the command, which cannot clean up; the run saves a checkpoint."""
    config, out = write_config(tmp_path / "config.yaml", data, steps=10_000), tmp_path / "out"
    with going(config, out, least=1) as process:
        (run,) = psutil.Process(process.pid).children()
        process.kill()
        run.wait(timeout=60)
    assert any((out / "runs" / "self_attention-seed0" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_killed_ablation_goes_on(data: PreparedData, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "config.yaml", data, steps=60), tmp_path / "out"
    run = out / "runs" / "self_attention-seed0"
    with going(config, out, least=12) as process:
        process.kill()
    with open(run / ".lock", "w") as lock:
        wait_for(lambda: _free(lock.fileno()))
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert not (run / "snapshots" / "00000060").exists()
    assert sagan("ablate", config, "--vary", "generator.attention.8=self_attention", "--out", out) == 0
    assert "resumed from step " in (out / "output" / "self_attention-seed0.txt").read_text()
    assert len((run / "log.jsonl").read_text().splitlines()) == 60
    assert "\n| self_attention | 1 | " in (out / "ablation.md").read_text()


def _free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- what varies


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    scores = {"every": 2, "num": 4, "metrics": ["coherence"]}
    path.write_text(yaml.safe_dump({**TINY, "data": {"source": "shapes:40"}, "evaluate": scores}))
    return path


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
    both = names("generator.attention.8=null,cbam", "discriminator.attention.8=null,cbam")
    assert both[:2] == ["generator=none+discriminator=none", "generator=none+discriminator=cbam"]
    assert names(f"{PLACE}=null", "optim.generator.lr=0.1") == ["attention.8=none+lr=0.1"]
    odd = names("data.source=a/b,a_b,../c,''", f"{PLACE}=null")
    assert len(set(odd)) == 4
    assert all("/" not in name and not name.startswith((".", "-")) for name in odd)
    assert len(names("a=" + "x" * 500)[0]) <= 100


def test_several_settings_give_every_combination(planned: Path) -> None:
    plan = make_plan(str(planned), [f"{PLACE}=null,self_attention", "optim.generator.lr=0.1,0.2"], "3,5", [])
    rates = [(bool(c.generator.attention), c.optim.generator.lr) for c in plan.configs.values()]
    assert rates == [(False, 0.1), (False, 0.2), (True, 0.1), (True, 0.2)]
    assert [seed for _, seed in plan.runs] == [3] * 4 + [5] * 4
    assert make_plan(str(planned), ["loss.r1=1"], None, ["seed=7"]).runs == [("r1=1", 7)]


def test_runs_at_the_same_time() -> None:
    assert parse_slots(3, None) == [None, None, None]
    assert parse_slots(None, "0, 3") == ["0", "3"]


def test_the_record_comes_back(planned: Path, tmp_path: Path) -> None:
    vary = f"{PLACE}+discriminator.attention.8=self_attention,null,{{name: self_attention, pool: false}}"
    new = merged(tmp_path / "out", make_plan(str(planned), [vary], "0-1", []))
    new.runs["none", 1] = RunRecord(
        variant="none", seed=1, state="failed", reason="because", seconds=2.5, peak_mib=10.0
    )
    new.parameters = {"none": (3, 4)}
    new.save({"found": 1})
    assert read_ablation(new.folder) == new
    assert [*new.variants] == ["self_attention", "none", "self_attention,pool=false"]


def test_values_and_seeds_can_be_added(planned: Path, tmp_path: Path) -> None:
    first = merged(tmp_path / "out", make_plan(str(planned), [f"{PLACE}=self_attention,null"], "0", []))
    done = RunRecord(variant="none", seed=0, state="done", seconds=1.0, peak_mib=5.0)
    first.runs["none", 0] = done
    first.save({})
    changes = ["training.device=auto", "seed=9"]
    vary = f"{PLACE}=null,{{name: self_attention, pool: false}}"
    both = merged(first.folder, make_plan(str(planned), [vary], "0-1", changes))
    assert [*both.variants] == ["self_attention", "none", "self_attention,pool=false"]
    assert both.runs["none", 0] == done
    assert len(both.runs) == 5


@pytest.mark.parametrize(
    ("vary", "override", "expected"),
    [
        (f"{PLACE}=null", "training.steps=7", "another config (training.steps: 6 there, 7 now); name a new folder"),
        (f"{PLACE}=null", "evaluate.num=5", "another config (evaluate.num: 4 there, 5 now)"),
        ("loss.r1=0,1", "seed=0", f"holds an ablation of {PLACE}, not of loss.r1"),
        (f"{PLACE}={{name: self_attention, pool: true}},{{name: self_attention, place: after}}", "seed=0",
         "the variants self_attention and self_attention,place=after are the same settings"),
    ],
    ids=["steps", "scores", "keys", "same"],
)  # fmt: skip
def test_another_plan_is_refused(planned: Path, tmp_path: Path, vary: str, override: str, expected: str) -> None:
    first = merged(tmp_path / "out", make_plan(str(planned), [f"{PLACE}=self_attention,null"], None, []))
    first.save({})
    before = files_of(first.folder)
    with pytest.raises(UserError) as caught:
        merged(first.folder, make_plan(str(planned), [vary], None, [override]))
    assert expected in str(caught.value)
    assert files_of(first.folder) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"keys": [], "variants": [], "runs": [], "config": {}}'])
def test_a_damaged_record_is_named(planned: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ablation.json").write_text(content)
    with pytest.raises(UserError, match=r"ablation\.json: "):
        merged(folder, make_plan(str(planned), ["loss.r1=0,1"], None, []))
    assert (folder / "ablation.json").read_text() == content


# --- table and picture


def write(folder: Path, name: str, seed: int, fid: float, gamma: float | None, **changes: Any) -> Run:
    """A finished run: scored at half its steps and at the last, then once more by another command."""
    run = folder / f"{name}-seed{seed}"
    (run / "snapshots" / f"{STEPS:08d}").mkdir(parents=True)
    for step, rate, value in ((5, 10.0, None), (10, 90.0, 7.0), (STEPS, 30.0, gamma)):
        line = {"step": step, "images_per_second": rate, "memory_mib": float(step), "d_loss": 1.0}
        health = {"g_gamma/attention.8x8": value, "g_entropy/attention.8x8": 0.5, "d_gamma/trunk.16x16": -0.001}
        append_json_line(run / "log.jsonl", line | (health if value is not None else {}))
    for step, score in ((10, 999.0), (STEPS, fid), (STEPS, 0.5)):
        scores = {"fid": score, "kid_std": 1.0, "recall": 0.5}
        append_json_line(run / "metrics.jsonl", {"step": step, **scores, "protocol": protocol(**changes)})
    return Run(name, seed, run, Path("output"), True, "done", "", 12.0, 321.0 if seed == 0 else None)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three variants: two seeds, one seed, and one that failed and one that waits."""
    found = [write(tmp_path, "pooled", 0, 10.0, 0.25), write(tmp_path, "pooled", 1, 14.0, 0.75),
             write(tmp_path, "plain|x", 0, 13.0, None)]  # fmt: skip
    broken = Run("broken", 0, tmp_path / "b", Path("output/broken-seed0.txt"), False, "failed", "g_loss is nan", 1, 1)
    return [*found, broken, Run("broken", 1, tmp_path / "c", Path("o"), False, "stopped", "", 1.0, None)]


def reported(tmp_path: Path, runs: list[Run]) -> dict[str, Any]:
    config = make_config({"training": {"steps": STEPS}, "evaluate": {"num": 10}})
    variants = {name: {"a.b": name} for name in ("pooled", "plain|x", "broken")}
    parameters = {"pooled": (12345, 678), "plain|x": (1, 2)}
    return report(tmp_path, config, variants, parameters, runs, as_json=False, picture=False)


def test_numbers_are_those_of_the_last_step(tmp_path: Path, runs: list[Run]) -> None:
    found = reported(tmp_path, runs)
    pooled, plain, broken = found["variants"]
    assert pooled["scores"]["fid"] == {"mean": 12.0, "std": pytest.approx(8**0.5), "values": [10.0, 14.0]}
    assert pooled["scores"]["kid_std"]["values"] == [1.0, 1.0]
    assert pooled["images_per_second"]["values"] == [30.0, 30.0]
    assert pooled["peak_mib"]["values"] == [321.0, STEPS]  # of the process, else of the log
    assert pooled["attention"]["g_gamma/attention.8x8"]["values"] == [0.25, 0.75]
    assert pooled["parameters"] == {"generator": 12345, "discriminator": 678}
    assert (pooled["seeds"], plain["scores"]["fid"]["std"], broken["n"]) == ([0, 1], None, 0)
    assert found["notes"] == [
        "failed: broken, seed 0: g_loss is nan (output/broken-seed0.txt)", "not done yet: broken (seed 1)",
    ]  # fmt: skip
    json.dumps(found)


def test_markdown_has_a_row_for_each_variant(tmp_path: Path, runs: list[Run]) -> None:
    reported(tmp_path, runs)
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert any(line.startswith("| pooled | 2 | **12.00 ± 2.83** | ") for line in lines)
    assert any(line.startswith("| plain\\|x | 1 | 13.00 | ") for line in lines)
    assert any(line.startswith("| broken | 0 | - | ") for line in lines)
    assert len({line.count(" | ") for line in lines if line.startswith("| ")}) == 1


def test_scores_of_different_protocols_have_no_best(tmp_path: Path, runs: list[Run]) -> None:
    (runs[2].folder / "metrics.jsonl").unlink()
    append_json_line(runs[2].folder / "metrics.jsonl", {"step": STEPS, "fid": 1.0, "protocol": protocol(num=5)})
    assert reported(tmp_path, runs)["notes"][0] == "fid: not measured alike in all runs, so none is called the best."
    assert "**" not in (tmp_path / "ablation.md").read_text()


def test_a_narrow_terminal_gets_several_tables(tmp_path: Path, runs: list[Run]) -> None:
    reported(tmp_path, runs)
    rows = [Row("pooled", (12345, 678), runs[:2]), Row("plain|x", (1, 2), runs[2:3])]
    text = text_table(columns_of(rows), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("variant") > 1
    assert text.index("fid") < text.index("parameters G")
    for cell in ("12.00 ± 2.83 *", "0.50 ± 0.35", "12,345"):
        assert cell in text


def test_missing_numbers_are_named(tmp_path: Path, runs: list[Run]) -> None:
    (runs[0].folder / "log.jsonl").write_text("")
    with pytest.raises(UserError, match=r"log\.jsonl: is missing or damaged"):
        reported(tmp_path, runs)
    (runs[0].folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: has no scores of the last step, 20"):
        reported(tmp_path, runs)


def test_every_mechanism_can_be_drawn(tmp_path: Path) -> None:
    raw = {"generator": {"channels": 8, "widths": [2, 2, 2, 2]}}
    heights = []
    rows = []
    for name in ["none", *ATTENTION]:
        config = make_config(raw, [f"generator.attention={'{}' if name == 'none' else '{16: ' + name + '}'}"])
        run = Run(name, 0, tmp_path / name, Path("o"), True, "done", "", 1.0, 1.0, 1, {"coherence": 0.25})
        save_snapshot(remove_spectral_norm(build_generator(config, 4)), run.folder / "snapshots" / "00000001")
        rows.append(Row(name, (1, 1), [run]))
        alone = ablation_picture(rows[-1:])
        heights.append(alone.shape[0])
        drawn_right = bool((alone[60:250, 600:] < 250).any()) if alone.shape[1] > 700 else False
        assert drawn_right == (name not in ("none", "residual_block")), name
    together = ablation_picture([*rows, Row("waiting", (1, 1), [])])
    note = 34  # pixels, once below all
    assert together.shape[0] == sum(heights) - note * (len(heights) - 1)

"""`sagan ablate`: the numbers of runs from their files, and the table of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from written_runs import protocol

from sagan.commands.ablate_numbers import leaders, mean_and_spread, measured, record_of, rows_of
from sagan.commands.ablate_plan import Ablation, Outcome
from sagan.commands.ablate_table import columns_of, markdown, notes, print_table
from sagan.commands.ablate_vary import Variant
from sagan.config import make_config
from sagan.errors import UserError
from sagan.files import append_json_line

STEPS = 20


def log_line(step: int, rate: float, gamma: float | None, memory: float = 50.0) -> dict[str, Any]:
    line = {"step": step, "images_per_second": rate, "memory_mib": memory, "d_loss": 1.0}
    if gamma is None:
        return line
    health = {"g_gamma/attention.8x8": gamma, "g_entropy/attention.8x8": 0.5, "d_gamma/trunk.attention.16x16": -0.001}
    return {**line, **health, "d_gamma/trunk.attention.8x8": 2 * gamma}


def write(run: Path, scores: dict[str, float], gamma: float | None, **changes: Any) -> None:
    """A finished run: scored at half its steps and at the last, then once more by another command."""
    (run / "snapshots" / f"{STEPS:08d}").mkdir(parents=True)
    for step, rate, value in ((5, 10.0, None), (10, 90.0, 7.0), (STEPS, 30.0, gamma)):
        append_json_line(run / "log.jsonl", log_line(step, rate, value, memory=float(step)))
    for step, values in ((10, {"fid": 999.0}), (STEPS, scores), (STEPS, {"fid": 0.5})):
        append_json_line(run / "metrics.jsonl", {"step": step, **values, "protocol": protocol(**changes)})


@pytest.fixture
def ablation(tmp_path: Path) -> Ablation:
    """Three variants: two seeds, one seed, one that failed and one that waits."""
    config = make_config({"training": {"steps": STEPS}, "evaluate": {"num": 10}})
    names = ("pooled", "plain|x", "broken")
    done = Outcome("done", "", 12.0, 321.0)
    runs = {
        ("pooled", 0): done, ("pooled", 1): Outcome("done", "", 14.0), ("plain|x", 0): done,
        ("broken", 0): Outcome("failed", "g_loss is nan at step 3"), ("broken", 1): Outcome("stopped"),
    }  # fmt: skip
    found = Ablation(
        tmp_path, config, {name: Variant(name, {"a.b": name}) for name in names}, dict.fromkeys(names, config), runs,
        {"pooled": (12345, 678), "plain|x": (1, 2)},
    )  # fmt: skip
    write(found.run_folder(("pooled", 0)), {"fid": 10.0, "kid_std": 1.0, "recall": 0.5}, 0.25)
    write(found.run_folder(("pooled", 1)), {"fid": 14.0, "kid_std": 3.0, "recall": 0.7}, 0.75)
    write(found.run_folder(("plain|x", 0)), {"fid": 13.0, "kid_std": 1.0, "recall": 0.6}, None)
    return found


def test_numbers_are_those_of_the_last_step(ablation: Ablation) -> None:
    """Breaks when another step's scores are taken, or those of a later command, the speed is a mean, or the peak is
    the log's where the process's own is known."""
    found = measured(ablation.run_folder(("pooled", 0)), ("pooled", 0), Outcome("done", "", 12.0, 321.0))
    assert found.scores == {"fid": 10.0, "kid_std": 1.0, "recall": 0.5}
    assert (found.step, found.images_per_second, found.peak_mib, found.seconds) == (STEPS, 30.0, 321.0, 12.0)
    assert found.health["g_gamma/attention.8x8"] == 0.25
    on_gpu = measured(ablation.run_folder(("pooled", 0)), ("pooled", 0), Outcome("done"))
    assert on_gpu.peak_mib == STEPS


def test_mean_and_standard_deviation() -> None:
    """Breaks when the divisor is n, or one value has a spread."""
    assert mean_and_spread([1.0, 2.0, 4.5]) == {"mean": 2.5, "std": pytest.approx(3.25**0.5), "values": [1.0, 2.0, 4.5]}
    assert mean_and_spread([1.0])["std"] is None


def test_the_best_follows_the_direction_of_the_metric(ablation: Ablation) -> None:
    """Breaks when the highest fid is the best, the best seed counts and not the mean, or equal ones are told apart."""
    rows = rows_of(ablation)
    assert leaders(rows, "fid") == {"pooled"}
    assert leaders(rows, "recall") == set()


def test_scores_that_were_not_measured_alike_have_no_best(ablation: Ablation) -> None:
    """Breaks when scores of different protocols are ranked without a word."""
    run = ablation.run_folder(("plain|x", 0))
    (run / "metrics.jsonl").unlink()
    append_json_line(run / "metrics.jsonl", {"step": STEPS, "fid": 1.0, "recall": 1.0, "protocol": protocol(num=5)})
    rows = rows_of(ablation)
    assert leaders(rows, "fid") == set()
    assert notes(ablation, rows)[0] == "fid: not measured alike in all runs, so none is called the best."


def test_columns(ablation: Ablation) -> None:
    """Breaks when a number stands under another heading, in another row, or a column that nothing fills is shown."""
    columns = {column.heading: column.cells for column in columns_of(rows_of(ablation))}
    assert columns == {
        "variant": ("pooled", "plain|x", "broken"),
        "n": ("2", "1", "0"),
        "fid ↓": ("12.00 ± 2.83", "13.00", "-"),
        "recall ↑": ("0.600 ± 0.141", "0.600", "-"),
        "parameters G": ("12,345", "1", "-"),
        "parameters D": ("678", "2", "-"),
        "images/s": ("30 ± 0", "30", "-"),
        "memory MiB": ("170 ± 213", "321", "-"),
        "gamma G": ("0.50 ± 0.35", "-", "-"),
        "gamma D": ("0.00 ± 0.00, 1.00 ± 0.71", "-", "-"),
        "entropy G": ("0.50 ± 0.00", "-", "-"),
    }


def test_markdown(ablation: Ablation) -> None:
    """Breaks when the best is not bold, a name breaks the table, or what failed and what is missing is not said."""
    lines = markdown(ablation, rows_of(ablation), "p.png").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[2].startswith("| pooled | 2 | **12.00 ± 2.83** | 0.600 ± 0.141 | 12,345 |")
    assert table[3].startswith("| plain\\|x | 1 | 13.00 | 0.600 |")
    assert {line.replace("\\|", "").count("|") for line in table} == {12}
    assert "failed: broken, seed 0: g_loss is nan at step 3 (output/broken-seed0.txt)" in lines
    assert "not done yet: broken (seed 1)" in lines
    assert lines[-1] == "![samples and attention](p.png)"


@pytest.mark.parametrize(("missing", "tables"), [(0, 1), (1, 2), (100, 4)])
def test_a_narrow_terminal_gets_several_tables(ablation: Ablation, missing: int, tables: int) -> None:
    """Breaks when numbers are cut off or folded, or the scores are not first."""
    width = sum(column.width for column in columns_of(rows_of(ablation))) + 1 - missing
    console = Console(width=width, file=io.StringIO())
    print_table(ablation, rows_of(ablation), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("┏") == tables
    assert text.index("fid") < text.index("parameters G")
    assert max(map(len, text.splitlines()[2:12])) <= width
    for cell in ("12.00 ± 2.83", "0.00 ± 0.00, 1.00 ± 0.71", "12,345"):
        assert cell in text


def test_record_holds_everything(ablation: Ablation) -> None:
    """Breaks when a value of a single run, or of a module, cannot be had from ablation.json."""
    found = record_of(rows_of(ablation))
    assert [one["name"] for one in found] == ["pooled", "plain|x", "broken"]
    assert found[0]["scores"]["kid_std"] == {"mean": 2.0, "std": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert found[0]["attention"]["d_gamma/trunk.attention.8x8"]["values"] == [0.5, 1.5]
    assert found[0]["parameters"] == {"generator": 12345, "discriminator": 678}
    assert (found[0]["seeds"], found[2]["n"]) == ([0, 1], 0)
    json.dumps(found)


def test_missing_numbers_are_named(ablation: Ablation) -> None:
    """Breaks when a run without its last scores or its log passes for one with them."""
    run = ablation.run_folder(("pooled", 0))
    (run / "log.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"log\.jsonl: is missing or damaged"):
        rows_of(ablation)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: has no scores of the last step, 20"):
        rows_of(ablation)

"""`sagan compare`: a table of runs, their settings and scores; baselines from the literature."""

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from sagan.config.options import Place, as_json
from sagan.data.labels import CIFAR10_CLASSES
from sagan.evaluation.registry import DIRECTION
from sagan.evaluation.result import protocol_differences
from sagan.experiments.runs import Comparison, RunRecord, ScoreColumn, compare, differing_settings, leaders, read_runs
from sagan.experiments.table import NONE, Column, arrow, score_text, step_text, table_width, text_table, value_text
from sagan.utils.errors import UserError, suggestion
from sagan.utils.images import save_png

PIPED_WIDTH = 120  # characters
STAR = "* best of its column"


def protocol_words(protocol: dict[str, Any]) -> str:
    """Such as "10,000 generated images, 32x32, labels: uniform, against cifar10 (50,000 images), inception"."""
    images = "images of files" if protocol.get("images") == "files" else "generated images"
    words = [f"{_text(protocol.get('num'))} {images}"]
    words += [_text(protocol["size"])] if "size" in protocol else []
    for name, what in (("weights", "weights"), ("batch_norm", "batch-norm statistics")):
        words += [f"{_text(protocol[name])} {what}"] if name in protocol else []
    words += [f"{name}: {_text(protocol[name])}" for name in ("labels", "truncation") if name in protocol]
    if "reference" in protocol:
        count = f" ({_text(protocol['reference_count'])} images)" if "reference_count" in protocol else ""
        words.append(f"against {_text(protocol['reference'])}{count}")
    words += [_text(protocol["backbone"])] if "backbone" in protocol else []
    return ", ".join(words)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:8]
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value_text(value)


# --- text


def comparison_text(comparison: Comparison, width: int) -> str:
    """One run: its scores by step. Several runs: a row for each, with the settings that differ and the scores.

    Scores have a column for each metric and protocol; the notes below describe the protocols.
    """
    if len(comparison.runs) > 1:
        columns, title = _columns(comparison), []
    else:
        run = comparison.runs[0]
        title = [f"{run.name}: {run.step:,} steps, {run.images(run.step):,} images seen"]
        if not comparison.columns:
            return f"{title[0]}; no score yet"
        columns = _history(comparison)
    notes = [STAR] if any(column.bold for column in columns) else []
    notes += _protocol_notes(comparison) + _warnings(comparison)
    notes += [
        f"{run.name}: {name} changed from {value_text(old)} to {value_text(new)} after step {change['step']:,}"
        for run in comparison.runs for change in run.changes for name, (old, new) in change["changes"].items()
    ]  # fmt: skip
    lines = [textwrap.fill(note, max(width, 40), subsequent_indent="   ", break_on_hyphens=False) for note in notes]
    return "\n\n".join([*title, text_table(columns, width), *(["\n".join(lines)] if lines else [])])


def _columns(comparison: Comparison) -> list[Column]:
    runs = comparison.runs
    columns = [
        Column("run", [run.name for run in runs], words=True),
        Column("steps", [f"{run.step:,}" for run in runs]),
        Column("images\nseen", [f"{run.images(run.step):,}" for run in runs]),
    ]
    settings = differing_settings(runs)
    for name, values in settings.items():
        module = f"{name.rpartition('.')[0]}.name"
        present = [value for value in values if value is not None]
        # skip an option that differs only because its module is absent from some run
        if name == module or module not in settings or present == values or any(v != present[0] for v in present):
            columns.append(Column(name.replace(".", ".\n"), [value_text(value) for value in values]))
    for column in comparison.columns:
        heading = _heading(column)
        heading += " " if "\n" in heading else "\n"
        newest = [_with_step(column, i, run.step) for i, run in enumerate(runs)]
        columns.append(Column(f"{heading}newest", newest))
        if column.group is not None:
            best = [_with_step(column, i) for i in range(len(runs))]
            columns.append(Column(f"{heading}best", best, bold=column.leaders()))
    return columns


def _history(comparison: Comparison) -> list[Column]:
    run = comparison.runs[0]
    steps = sorted({s.step for column in comparison.columns for s in column.scores[0]}, key=lambda step: step or -1)
    columns = [
        Column("step", [step_text(step) for step in steps]),
        Column("images\nseen", ["?" if step is None else f"{run.images(step):,}" for step in steps]),
    ]
    for column in comparison.columns:
        values = {steps.index(score.step): score.value for score in column.scores[0]}
        cells = [score_text(column.metric, values[i]) if i in values else NONE for i in range(len(steps))]
        best = frozenset() if column.group is None else leaders(values, column.metric)
        columns.append(Column(_heading(column), cells, bold=best))
    return columns


def _with_step(column: ScoreColumn, run: int, now: int | None = None) -> str:
    """The best score of a run and its step or, with `now`, the newest one and its step unless that is `now`."""
    score = column.best(run) if now is None else next(iter(column.scores.get(run, [])[-1:]), None)
    if score is None:
        return NONE
    text = score_text(column.metric, score.value)
    return text if score.step is not None and score.step == now else f"{text} @ {step_text(score.step)}"


def _heading(column: ScoreColumn) -> str:
    return column.name.replace(column.metric, arrow(column.metric), 1).replace(" [", "\n[")


def _protocol_notes(comparison: Comparison) -> list[str]:
    """The protocol of each column; columns with the same protocol share a line."""
    named: dict[str, list[str]] = {}
    for column in comparison.columns:
        first = comparison.metrics[column.metric][0].group
        if column.group is None or first is None:
            words = "no protocol was recorded (by an older version): comparable with nothing"
        elif column.group == first:
            words = protocol_words(comparison.groups[first])
        else:
            one, other = comparison.groups[column.group], comparison.groups[first]
            names = protocol_differences(one, other)
            pairs = [f"{name} {_text(one.get(name))}, not {_text(other.get(name))}" for name in names]
            words = f"as [1], but {'; '.join(pairs)}"
        named.setdefault(words, []).append(column.name)
    scored = {number for column in comparison.columns for number in column.scores}
    missing = [run.name for number, run in enumerate(comparison.runs) if number not in scored]
    notes = [f"{', '.join(names)}: {words}" for words, names in named.items()]
    return notes + ([f"not scored: {', '.join(missing)}"] if missing else [])


def _warnings(comparison: Comparison) -> list[str]:
    """The warnings of the newest scores, each once with the runs that have it."""
    found: dict[str, dict[str, None]] = {}
    for number, run in enumerate(comparison.runs):
        for warning in [
            w for column in comparison.columns for s in column.scores.get(number, [])[-1:] for w in s.warnings
        ]:
            found.setdefault(warning, {})[run.name] = None
    return [f"{', '.join(names)}: warning: {warning}" for warning, names in found.items()]


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """The comparison for --json. Only scores of one of its `protocol_groups` are comparable.

    A score's `protocol_group` and `best` are null if no protocol was recorded. Scores of a run in the same metric
    under other protocols are listed under `others`.
    """
    settings, runs = differing_settings(comparison.runs), []
    for number, run in enumerate(comparison.runs):
        scores = {}
        for metric, columns in comparison.metrics.items():
            if found := [_score_record(column, number) for column in columns if number in column.scores]:
                scores[metric] = found[0] | ({"others": found[1:]} if len(found) > 1 else {})
        runs.append({
            "name": run.name, "folder": str(run.folder), "step": run.step, "images": run.images(run.step),
            "settings": {name: values[number] for name, values in settings.items()}, "scores": scores,
            **({"changes": run.changes} if run.changes else {}),
        })  # fmt: skip
    groups = [
        {"group": n, "metrics": [c.metric for c in comparison.columns if c.group == n], "protocol": protocol}
        for n, protocol in enumerate(comparison.groups)
    ]
    return {"runs": runs, "protocol_groups": groups}


def _score_record(column: ScoreColumn, run: int) -> dict[str, Any]:
    newest, best = column.scores[run][-1], column.best(run)
    return {
        "newest": newest.value, "newest_step": newest.step, "best": None if best is None else best.value,
        "best_step": None if best is None else best.step, "protocol_group": column.group,
        **({"warnings": list(newest.warnings)} if newest.warnings else {}),
    }  # fmt: skip


# --- baselines: published results

CIFAR10, IMAGENET128, TINY_IMAGENET64 = "cifar10", "imagenet128", "tiny-imagenet64"
DATA_SETS = (CIFAR10, IMAGENET128, TINY_IMAGENET64)
PAPER, MMGENERATION = "50k samples, moving averages in batch norm", "as in mmgeneration's table"
STUDIOGAN, STUDIOGAN_50K = "as in StudioGAN's table", "50k samples against the training images"
CAVEATS = {
    None: "published scores differ in samples, reference, batch-norm mode and Inception weights: "
    "do not rank them with yours",
    CIFAR10: "the protocol matters: the same StudioGAN checkpoint has FID 14.01 with 10k samples against the test "
    "images and 10.20 with 50k against the training images",
}


@dataclass(frozen=True)
class Baseline:
    """A row of a published table. `scores`: by our names of the metrics; `protocol`: in words."""

    source: str
    data: str
    scores: dict[str, float]
    protocol: str


BASELINES = (
    Baseline("SAGAN paper, attention at 32", IMAGENET128, {"fid": 18.28, "is": 51.43}, PAPER),
    Baseline("SAGAN paper, attention at 64", IMAGENET128, {"fid": 18.65, "is": 52.52, "intra_fid": 83.7}, PAPER),
    Baseline("SAGAN paper, attention at 16", IMAGENET128, {"fid": 22.14, "is": 45.94}, PAPER),
    Baseline("SAGAN paper, attention at 8", IMAGENET128, {"fid": 22.98, "is": 43.15}, PAPER),
    Baseline("SAGAN paper, no attention", IMAGENET128, {"fid": 22.96, "is": 42.87}, PAPER),
    Baseline("mmgeneration SAGAN, BigGAN schedule", IMAGENET128, {"fid": 12.83, "is": 69.54}, MMGENERATION),
    Baseline("StudioGAN SAGAN", IMAGENET128, {"fid": 34.73, "is": 29.85}, STUDIOGAN),
    Baseline("mmgeneration SAGAN", CIFAR10, {"fid": 9.43, "is": 9.32}, f"{MMGENERATION}, best checkpoint"),
    Baseline("StudioGAN SAGAN", CIFAR10, {"fid": 10.35, "is": 8.64, "precision": 0.69, "recall": 0.63}, STUDIOGAN_50K),
    Baseline("StudioGAN SNGAN (no attention)", CIFAR10, {"fid": 9.01, "is": 8.83}, STUDIOGAN_50K),
    Baseline("StudioGAN SAGAN", TINY_IMAGENET64, {"fid": 51.41, "is": 8.34}, STUDIOGAN),
)


def baseline_data(runs: Sequence[RunRecord], name: str) -> list[str]:
    """The named data set or, with "auto", those of the runs. UserError if it has no baselines."""
    if name in DATA_SETS:
        return [name]
    if name != "auto":
        raise UserError(f"--baselines {name}: no baselines for that data set; {suggestion(name, DATA_SETS)}")
    found = [recognize(run.about.get("class_names"), run.config.data.resolution) for run in runs]
    if not any(found):
        raise UserError(f"--baselines: none for the data of these runs; name one of {', '.join(DATA_SETS)}")
    return [data for data in DATA_SETS if data in found]


def recognize(class_names: Any, resolution: int) -> str | None:
    """The data set with these class names (of run.json) and resolution that has baselines, if any."""
    names = [str(name) for name in class_names] if isinstance(class_names, list) else []
    if resolution == 32 and {name.lower() for name in names} == set(CIFAR10_CLASSES):
        return CIFAR10
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in names)
    sets = {(1000, 128): IMAGENET128, (200, 64): TINY_IMAGENET64}
    return sets.get((len(names), resolution)) if wordnet else None


def baselines_text(data: str, width: int) -> str:
    """The baselines of a data set and their caveats."""
    rows = [row for row in BASELINES if row.data == data]
    columns = [Column("baseline", [row.source for row in rows], words=True)]
    for metric in [metric for metric in DIRECTION if any(metric in row.scores for row in rows)]:
        cells = [score_text(metric, row.scores[metric]) if metric in row.scores else NONE for row in rows]
        columns.append(Column(arrow(metric), cells))
    columns.append(Column("protocol", [row.protocol for row in rows], words=True))
    caveats = [textwrap.fill(CAVEATS[name], max(width, 40)) for name in (None, data) if name in CAVEATS]
    return "\n\n".join([f"baselines for {data} (published results)", text_table(columns, width), "\n".join(caveats)])


def check_metric(metric: str | None) -> None:
    """UserError for an unknown metric."""
    if metric is not None and metric not in DIRECTION:
        raise UserError(f"--metric {metric}: unknown metric; {suggestion(metric, DIRECTION)}")


def compare_runs(folders: Sequence[Path], metric: str | None = None) -> Comparison:
    """Compare runs, in one metric if it is named. UserError for an unknown metric, and for one that no run has."""
    check_metric(metric)
    comparison = compare(read_runs(folders))
    if metric is None:
        return comparison
    if metric not in comparison.metrics:
        have = f"they have {', '.join(comparison.metrics)}" if comparison.columns else "they have no score yet"
        raise UserError(f"--metric {metric}: none of these runs has it; {have}")
    return compare(comparison.runs, only=metric)


# --- the command


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=Place())
@click.option("--metric", help="Show only this metric.")
@click.option("--baselines", is_flag=False, flag_value="auto", metavar="[DATA]", help="Also show published results.")
@click.option("--published", is_flag=False, flag_value="auto", hidden=True)  # the former name of --baselines
@click.option("--out", type=Place(), metavar="FILE.png", help="Draw curves and the newest sample grids.")
@as_json
def compare_cli(
    runs: tuple[Path, ...], metric: str | None, baselines: str | None, published: str | None, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare the settings and scores of RUNS. One run: its scores by step."""
    baselines = baselines or published
    check_metric(metric)
    if baselines is not None and Path(baselines).is_dir():
        raise UserError(f"--baselines {baselines}: is a folder, not a data set; put --baselines after the runs")
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UserError(f"--out {out}: name a .png file{'; this is a folder' if out.is_dir() else ''}")
    comparison = compare_runs(runs, metric)
    data = [] if baselines is None else baseline_data(comparison.runs, baselines)
    if out is not None:
        from sagan.experiments.charts import comparison_figure, rendered

        save_png(out, rendered(comparison_figure(comparison)))
    if as_json:
        record = comparison_record(comparison)
        if data:
            record["published"] = [asdict(row) for row in BASELINES if row.data in data]
            record["published_notes"] = [CAVEATS[name] for name in (None, *data) if name in CAVEATS]
        print(json.dumps(record))
    else:
        width = table_width(PIPED_WIDTH)
        print("\n\n".join([comparison_text(comparison, width), *(baselines_text(name, width) for name in data)]))
    if out is not None:
        print(out, file=sys.stderr if as_json else sys.stdout)

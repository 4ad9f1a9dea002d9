"""`sagan compare`: runs side by side, how they differ and what they score; published results for reference."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from sagan.config.options import Place, as_json
from sagan.evaluation.registry import DIRECTION
from sagan.evaluation.result import protocol_differences
from sagan.experiments.runs import Comparison, RunRecord, Score, Series, compare, differing_settings, read_runs
from sagan.experiments.table import Column, arrow, score_text, step_text, text_table, value_text
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


def difference_words(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The fields in which two protocols differ, with both values: "num 1,000, not 10,000; dtype a, not b"."""
    names = protocol_differences(one, other)
    return "; ".join(f"{name} {_text(one.get(name))}, not {_text(other.get(name))}" for name in names)


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
    """One run: its scores by step. Several: a row for each run, with the settings that differ and its scores.

    Scores have a column for each metric and protocol; notes say how each column was measured.
    """
    if len(comparison.runs) > 1:
        columns, title = _columns(comparison), []
    else:
        run = next(iter(comparison.runs))
        title = [f"{run.name}: {run.step:,} steps, {run.images(run.step):,} images seen"]
        if not comparison.series:
            return f"{title[0]}; no score yet"
        columns = _history(comparison)
    notes = [STAR] if any(column.bold for column in columns) else []
    notes += _protocol_notes(comparison) + _warnings(comparison)
    lines = [textwrap.fill(note, max(width, 40), subsequent_indent="   ", break_on_hyphens=False) for note in notes]
    return "\n\n".join([*title, text_table(columns, width), *(["\n".join(lines)] if lines else [])])


def _columns(comparison: Comparison) -> list[Column]:
    runs = comparison.runs
    columns = [
        Column("run", tuple(run.name for run in runs), words=True),
        Column("steps", tuple(f"{run.step:,}" for run in runs)),
        Column("images\nseen", tuple(f"{run.images(run.step):,}" for run in runs)),
    ]
    settings = differing_settings(runs)
    for name, values in settings.items():
        module = f"{name.rpartition('.')[0]}.name"
        present = [value for value in values if value is not None]
        option = name != module and module in settings and present == present[:1] * len(present) != values
        if not option:  # an option that is there or not with its module says nothing new
            columns.append(Column(name.replace(".", ".\n"), tuple(map(value_text, values))))
    for metric in comparison.metrics():
        for group in comparison.columns(metric):
            series = [comparison.at(metric, group, number) for number in range(len(runs))]
            heading = _heading(comparison, metric, group)
            between = " " if "\n" in heading else "\n"
            newest = tuple(
                "-" if s is None else _with_step(s.newest, now=run.step) for s, run in zip(series, runs, strict=True)
            )
            columns.append(Column(f"{heading}{between}newest", newest))
            if group is not None:
                best = tuple("-" if s is None or s.best is None else _with_step(s.best) for s in series)
                columns.append(
                    Column(f"{heading}{between}best", best, bold=frozenset(comparison.leaders(metric, group)))
                )
    return columns


def _history(comparison: Comparison) -> list[Column]:
    (run,) = comparison.runs
    steps = sorted({point.step for s in comparison.series for point in s.points}, key=lambda step: step or -1)
    columns = [
        Column("step", tuple(map(step_text, steps))),
        Column("images\nseen", tuple("?" if step is None else f"{run.images(step):,}" for step in steps)),
    ]
    for metric in comparison.metrics():
        for group in comparison.columns(metric):
            series = comparison.at(metric, group, 0)
            assert series is not None, "a column is of some run, and there is one"
            values = {point.step: point.value for point in series.points}
            top = series.best.value if series.best is not None and len(set(values.values())) > 1 else None
            best = frozenset(i for i, step in enumerate(steps) if top is not None and values.get(step) == top)
            cells = tuple(score_text(metric, values[step]) if step in values else "-" for step in steps)
            columns.append(Column(_heading(comparison, metric, group), cells, bold=best))
    return columns


def _with_step(score: Score, now: int | None = None) -> str:
    """The score and its step, unless that is `now`."""
    text = score_text(score.metric, score.value)
    return text if score.step is not None and score.step == now else f"{text} @ {step_text(score.step)}"


def _name(comparison: Comparison, metric: str, group: int | None) -> str:
    """The metric, numbered where it has several columns; [?] where no protocol was recorded."""
    columns = comparison.columns(metric)
    if group is None:
        return f"{metric} [?]"
    return metric if len(columns) == 1 else f"{metric} [{columns.index(group) + 1}]"


def _heading(comparison: Comparison, metric: str, group: int | None) -> str:
    return _name(comparison, metric, group).replace(metric, arrow(metric), 1).replace(" [", "\n[")


def _protocol_notes(comparison: Comparison) -> list[str]:
    """How each column was measured; columns that were measured alike share a line."""
    named: dict[str, list[str]] = {}
    for metric in comparison.metrics():
        columns = comparison.columns(metric)
        for group in columns:
            if group is None:
                words = "no protocol was recorded (by an older version): comparable with nothing"
            elif group == columns[0]:
                words = protocol_words(comparison.groups[group])
            else:
                first = columns[0]
                assert first is not None, "the unknown protocol comes last"
                words = f"as [1], but {difference_words(comparison.groups[group], comparison.groups[first])}"
            named.setdefault(words, []).append(_name(comparison, metric, group))
    scored = {series.run for series in comparison.series}
    missing = [run.name for number, run in enumerate(comparison.runs) if number not in scored]
    notes = [f"{', '.join(names)}: {words}" for words, names in named.items()]
    return notes + ([f"not scored: {', '.join(missing)}"] if missing else [])


def _warnings(comparison: Comparison) -> list[str]:
    """The warnings of the newest scores, each once with the runs that have it."""
    found: dict[str, dict[str, None]] = {}
    for series in comparison.series:
        for warning in series.newest.warnings:
            found.setdefault(warning, {})[comparison.runs[series.run].name] = None
    return [f"{', '.join(names)}: warning: {warning}" for warning, names in found.items()]


# --- JSON


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """`runs` with their scores by metric, and `protocol_groups`: only scores of one group may be compared.

    A score's `protocol_group` and `best` are null where no protocol was recorded. Scores of a run in the same metric
    under other protocols are listed under `others`.
    """
    settings = differing_settings(comparison.runs)
    runs = []
    for number, run in enumerate(comparison.runs):
        scores = {}
        for metric in comparison.metrics():
            each = (comparison.at(metric, group, number) for group in comparison.columns(metric))
            if series := [_series(s) for s in each if s is not None]:
                scores[metric] = series[0] | ({"others": series[1:]} if len(series) > 1 else {})
        runs.append({
            "name": run.name, "folder": str(run.folder), "step": run.step, "images": run.images(run.step),
            "settings": {name: values[number] for name, values in settings.items()}, "scores": scores,
        })  # fmt: skip
    groups = [
        {"group": n, "metrics": [m for m in comparison.metrics() if n in comparison.columns(m)], "protocol": protocol}
        for n, protocol in enumerate(comparison.groups)
    ]
    return {"runs": runs, "protocol_groups": groups}


def _series(series: Series) -> dict[str, Any]:
    newest, best = series.newest, series.best
    return {
        "newest": newest.value, "newest_step": newest.step, "best": None if best is None else best.value,
        "best_step": None if best is None else best.step, "protocol_group": series.group,
        **({"warnings": list(newest.warnings)} if newest.warnings else {}),
    }  # fmt: skip


# --- published results

CIFAR10, IMAGENET128, TINY_IMAGENET64 = "cifar10", "imagenet128", "tiny-imagenet64"
DATA_SETS = (CIFAR10, IMAGENET128, TINY_IMAGENET64)
CIFAR10_CLASSES = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
PAPER, MMGENERATION = "50k samples, moving averages in batch norm", "as in mmgeneration's table"
STUDIOGAN, STUDIOGAN_50K = "as in StudioGAN's table", "50k samples against the training images"
CAVEATS = {
    None: "published scores differ in samples, reference, batch-norm mode and Inception weights: "
    "do not rank them with yours",
    CIFAR10: "the protocol matters: the same StudioGAN checkpoint has FID 14.01 with 10k samples against the test "
    "images and 10.20 with 50k against the training images",
}


@dataclass(frozen=True)
class Published:
    """A row of a published table. `scores`: by our names of the metrics; `protocol`: in words."""

    source: str
    data: str
    scores: dict[str, float]
    protocol: str


PUBLISHED = (
    Published("SAGAN paper, attention at 32", IMAGENET128, {"fid": 18.28, "is": 51.43}, PAPER),
    Published("SAGAN paper, attention at 64", IMAGENET128, {"fid": 18.65, "is": 52.52, "intra_fid": 83.7}, PAPER),
    Published("SAGAN paper, attention at 16", IMAGENET128, {"fid": 22.14, "is": 45.94}, PAPER),
    Published("SAGAN paper, attention at 8", IMAGENET128, {"fid": 22.98, "is": 43.15}, PAPER),
    Published("SAGAN paper, no attention", IMAGENET128, {"fid": 22.96, "is": 42.87}, PAPER),
    Published("mmgeneration SAGAN, BigGAN schedule", IMAGENET128, {"fid": 12.83, "is": 69.54}, MMGENERATION),
    Published("StudioGAN SAGAN", IMAGENET128, {"fid": 34.73, "is": 29.85}, STUDIOGAN),
    Published("mmgeneration SAGAN", CIFAR10, {"fid": 9.43, "is": 9.32}, f"{MMGENERATION}, best checkpoint"),
    Published("StudioGAN SAGAN", CIFAR10, {"fid": 10.35, "is": 8.64, "precision": 0.69, "recall": 0.63}, STUDIOGAN_50K),
    Published("StudioGAN SNGAN (no attention)", CIFAR10, {"fid": 9.01, "is": 8.83}, STUDIOGAN_50K),
    Published("StudioGAN SAGAN", TINY_IMAGENET64, {"fid": 51.41, "is": 8.34}, STUDIOGAN),
)


def published_data(runs: Sequence[RunRecord], asked: str) -> list[str]:
    """The data sets whose published results are shown: the named one, or with "auto" those of the runs.

    UserError where there are none.
    """
    if asked != "auto":
        if asked not in DATA_SETS:
            known = suggestion(asked, DATA_SETS)
            raise UserError(f"--published {asked}: no published results on that data set; {known}")
        return [asked]
    found = [recognize(run.class_names, run.config.data.resolution) for run in runs]
    if data := [name for name in DATA_SETS if name in found]:
        return data
    raise UserError(
        f"--published: the data of these runs are none with published results; name one of {', '.join(DATA_SETS)}"
    )


def recognize(class_names: Sequence[str], resolution: int) -> str | None:
    """The published data set with these class names and resolution; None for any other."""
    if resolution == 32 and {name.lower() for name in class_names} == CIFAR10_CLASSES:
        return CIFAR10
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    sets = {(1000, 128): IMAGENET128, (200, 64): TINY_IMAGENET64}
    return sets.get((len(class_names), resolution)) if wordnet else None


def published_record(data: Sequence[str]) -> dict[str, Any]:
    """Rows and caveats as plain values."""
    rows = [asdict(row) for row in PUBLISHED if row.data in data]
    return {"published": rows, "published_notes": [CAVEATS[name] for name in (None, *data) if name in CAVEATS]}


def published_text(data: str, width: int) -> str:
    """The published rows of a data set and their caveats."""
    rows = [row for row in PUBLISHED if row.data == data]
    columns = [Column("published", tuple(row.source for row in rows), words=True)]
    for metric in DIRECTION:
        if any(metric in row.scores for row in rows):
            cells = (score_text(metric, row.scores[metric]) if metric in row.scores else "-" for row in rows)
            columns.append(Column(arrow(metric), tuple(cells)))
    columns.append(Column("how measured", tuple(row.protocol for row in rows), words=True))
    caveats = [textwrap.fill(CAVEATS[name], max(width, 40)) for name in (None, data) if name in CAVEATS]
    return "\n\n".join([f"published results on {data}", text_table(columns, width), "\n".join(caveats)])


# --- the command


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=Place())
@click.option("--metric", help="Show only this metric.")
@click.option("--published", is_flag=False, flag_value="auto", metavar="[DATA]", help="Also show published results.")
@click.option("--out", type=Place(), metavar="FILE.png", help="Draw curves and the newest sample grids.")
@as_json
def compare_cli(
    runs: tuple[Path, ...], metric: str | None, published: str | None, out: Path | None, as_json: bool
) -> None:
    """Compare the settings and scores of RUNS. One run: its scores by step."""
    if metric is not None and metric not in DIRECTION:
        raise UserError(f"--metric {metric}: unknown metric; {suggestion(metric, DIRECTION)}")
    if published is not None and Path(published).is_dir():
        raise UserError(f"--published {published}: is a folder, not a data set; put --published behind the runs")
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UserError(f"--out {out}: name a .png file{'; this is a folder' if out.is_dir() else ''}")
    comparison = compare(read_runs(runs))
    if metric is not None:
        if metric not in comparison.metrics():
            have = f"they have {', '.join(comparison.metrics())}" if comparison.series else "they have no score yet"
            raise UserError(f"--metric {metric}: none of these runs has it; {have}")
        comparison = compare(comparison.runs, only=metric)
    data = [] if published is None else published_data(comparison.runs, published)
    if out is not None:
        from sagan.experiments.charts import comparison_figure

        save_png(out, comparison_figure(comparison))
    if as_json:
        print(json.dumps({**comparison_record(comparison), **(published_record(data) if data else {})}))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
        print("\n\n".join([comparison_text(comparison, width), *(published_text(name, width) for name in data)]))
    if out is not None:
        print(out, file=sys.stderr if as_json else sys.stdout)

"""Read run folders: settings, logs, and scores grouped by evaluation protocol."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from sagan.config.load import differences, load_config
from sagan.config.schema import Config
from sagan.evaluation.registry import DIRECTION, decides
from sagan.evaluation.result import NOT_COMPARED, protocol_differences
from sagan.runs.run_dir import ABOUT, BINDING, CONFIG, read_changes
from sagan.utils.errors import UserError, first_error
from sagan.utils.io import read_json

LARGEST = sys.float_info.max
Step = Annotated[int, Field(ge=0), Strict()]


class LogLine(BaseModel):
    """A line of log.jsonl: `step` and numbers under further names; NaN marks a diverged value."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]
    step: Step | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """All finite numbers."""
        found = {name: v for name, v in self.__pydantic_extra__.items() if isinstance(v, int | float)}
        return {n: float(v) for n, v in found.items() if not isinstance(v, bool) and -LARGEST <= v <= LARGEST}


class MetricsLine(LogLine):
    """A line of metrics.jsonl: the scores of one step, under the names of the metrics."""

    protocol: dict[str, Any] | None = None
    warnings: list[str] = []

    @model_validator(mode="after")
    def _check(self) -> "MetricsLine":
        for metric in DIRECTION:
            value = self.__pydantic_extra__.get(metric)
            if value is not None and metric not in self.numbers:
                raise ValueError(f"{metric} is {value!r}, expected a finite number")
        if self.step is None and self.protocol is not None:
            self.step = step = self.protocol.get("checkpoint_step")
            if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 0):
                raise ValueError(f"its step is {step!r}, expected a whole number")
        return self

    @property
    def scores(self) -> dict[str, float]:
        """The numbers that rank generators."""
        numbers = self.numbers
        return {metric: numbers[metric] for metric in DIRECTION if metric in numbers}


Line = TypeVar("Line", LogLine, MetricsLine)


def read_lines(path: Path, kind: type[Line], may_be_cut: bool = False) -> list[Line]:
    """Read a JSON Lines file; [] if it does not exist. `may_be_cut`: skip an unfinished last line.

    UserError for a damaged line.
    """
    try:
        lines = path.read_text().split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    found = []
    for number, text in enumerate(lines[:-1] if may_be_cut else lines, 1):
        try:
            found += [kind.model_validate_json(text)] if text.strip() else []
        except ValidationError as error:
            raise UserError(
                f"{path}: line {number} is damaged ({first_error(error)}); repair or remove that line"
            ) from None
    return found


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run. `about`: run.json, {} if missing; `step`: the last one in any of its files.

    `changes`: of settings, within the run: after {"step"}, {"changes": name -> (old, new)}.
    """

    folder: Path
    name: str
    config: Config
    about: dict[str, Any]
    log: list[LogLine]
    metrics: list[MetricsLine]
    step: int
    changes: list[dict[str, Any]] = field(default_factory=list)

    def images(self, step: int) -> int:
        """Images seen after `step` generator updates."""
        return step * self.config.training.batch_size

    def logged(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a logged number, where it is finite."""
        found = ((line.step, line.numbers.get(name)) for line in self.log)
        return [(step, value) for step, value in found if step is not None and value is not None]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs, under distinct names. UserError if a folder is not a run, is given twice, or has a damaged file."""
    return [read_run(folder, name) for folder, name in zip(folders, unique_names(folders), strict=True)]


def read_run(folder: Path, name: str) -> RunRecord:
    """Read one run. UserError if the folder is not a run or has a damaged file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name the folder of a run")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a run, it has no {CONFIG}; name a folder that sagan train made")
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if not isinstance(about, dict):
        raise UserError(f"{folder / ABOUT}: not the record of a run; restore it, or remove it")
    metrics = read_lines(folder / "metrics.jsonl", MetricsLine)
    log = read_lines(folder / "log.jsonl", LogLine, may_be_cut=True)
    saved = [int(p.name) for kind in BINDING for p in (folder / kind).glob("[0-9]" * 8) if p.is_dir()]
    step = max([0, *saved, *(line.step for line in [*log[-1:], *metrics] if line.step is not None)])
    return RunRecord(folder, name, load_config(folder / CONFIG), about, log, metrics, step, read_changes(folder))


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, preceded by as many parents as distinguish it from the others."""
    paths = [folder.resolve() for folder in folders]
    names = []
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{folder}: is given twice")
        others = [other.parts for other in paths if other != path]
        lengths = range(1, len(path.parts) + 1)
        length = next((n for n in lengths if all(o[-n:] != path.parts[-n:] for o in others)), lengths[-1])
        names.append("/".join(path.parts[-length:]))
    return names


def differing_settings(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Settings in which the runs differ, by dotted name: the value in each run, None where it has no such setting.

    Includes `data.content_hash` of run.json: equal sources can hold different images.
    """
    changed = [differences(runs[0].config, run.config) for run in runs]
    names = dict.fromkeys(name for pairs in changed for name in pairs)
    settings = {}
    for name in names:
        if not any(other.startswith(f"{name}.") for other in names):  # {} against its entries
            common = next(pairs[name][0] for pairs in changed if name in pairs)
            settings[name] = [pairs[name][1] if name in pairs else common for pairs in changed]
    hashes = [run.about.get("content_hash") for run in runs]
    return settings | ({"data.content_hash": hashes} if any(h != hashes[0] for h in hashes) else {})


# --- scores by metric and protocol


@dataclass(frozen=True)
class Score:
    """One score of a run. `step`: None if it was not recorded."""

    value: float
    step: int | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreColumn:
    """The scores in one metric that were measured under one protocol.

    `name`: the metric, numbered if it has several columns, or with [?] if no protocol was recorded. `group`: index into
    `Comparison.groups`; None if no protocol was recorded, so that no two scores are comparable. `scores`: of each run,
    by its index; one per step, in order, those without a step first.
    """

    name: str
    metric: str
    group: int | None
    scores: dict[int, list[Score]]

    def best(self, run: int) -> Score | None:
        """The best score of a run, the earliest of equal ones; None without comparable scores."""
        if self.group is None or run not in self.scores:
            return None
        return max(self.scores[run], key=lambda score: DIRECTION[self.metric] * score.value)

    def leaders(self) -> frozenset[int]:
        """The runs with the best score; none if all are equal."""
        return leaders({run: best.value for run in self.scores if (best := self.best(run))}, self.metric)


@dataclass(frozen=True)
class Comparison:
    """Runs and their scores, as `sagan.compare` returns them. In a notebook it shows itself as the table of `str`.

    `groups`: the distinct protocols, reduced to the fields that decide a score. `columns`: by metric, in the order of
    the registry; of a metric, those with the most runs, then scores, first, and the unknown protocol last.

    Examples:
        >>> comparison = sagan.compare("runs/shapes")
        >>> str(comparison).startswith("shapes: 2 steps, 16 images seen")
        True
        >>> comparison.record()["runs"][0]["step"]
        2
    """

    runs: Sequence[RunRecord]
    groups: list[dict[str, Any]]
    columns: list[ScoreColumn]

    @property
    def metrics(self) -> dict[str, list[ScoreColumn]]:
        """The columns of each metric that some run has."""
        names = dict.fromkeys(column.metric for column in self.columns)
        return {name: [column for column in self.columns if column.metric == name] for name in names}

    def record(self) -> dict[str, Any]:
        """Settings that differ, scores and protocols, as `sagan compare --json` prints them."""
        from sagan.experiments.compare import comparison_record  # here: it imports this module

        return comparison_record(self)

    def __str__(self) -> str:
        from sagan.experiments.compare import PIPED_WIDTH, comparison_text

        return comparison_text(self, PIPED_WIDTH)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def compare(runs: Sequence[RunRecord], only: str | None = None) -> Comparison:
    """Group the scores of `runs` by metric and protocol; `only`: of one metric."""
    groups: list[dict[str, Any]] = []
    found: dict[tuple[str, int | None], dict[int, dict[int | None, Score]]] = {}
    for number, run in enumerate(runs):
        for line in run.metrics:
            for metric, value in line.scores.items():
                if only in (None, metric):
                    scores = found.setdefault((metric, _group_of(metric, line.protocol, groups)), {})
                    score = Score(value, line.step, tuple(line.warnings))
                    scores.setdefault(number, {})[line.step] = score  # the latest evaluation of a step counts
    columns = []
    for metric in DIRECTION:
        of_metric = {group: scores for (name, group), scores in found.items() if name == metric}
        size = {group: (len(scores), sum(map(len, scores.values()))) for group, scores in of_metric.items()}
        order = sorted(of_metric, key=lambda g: (g is None, -size[g][0], -size[g][1], g))
        for number, group in enumerate(order, 1):
            name = f"{metric} [?]" if group is None else f"{metric} [{number}]" if len(order) > 1 else metric
            scores = {run: sorted(each.values(), key=_step_order) for run, each in of_metric[group].items()}
            columns.append(ScoreColumn(name, metric, group, scores))
    return Comparison(runs, groups, columns)


def leaders(values: dict[int, float], metric: str) -> frozenset[int]:
    """The keys of the best values; none if all are equal."""
    best = max(values.values(), key=lambda value: DIRECTION[metric] * value, default=None)
    return frozenset(key for key, value in values.items() if value == best and len({*values.values()}) > 1)


def deciding_fields(metric: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """The fields of a protocol that decide a score of this metric: no parameters of others, seeds or versions."""
    return {
        name: value
        for name, value in protocol.items()
        if value is not None and name not in NOT_COMPARED and decides(name, metric)
    }


def _group_of(metric: str, protocol: dict[str, Any] | None, groups: list[dict[str, Any]]) -> int | None:
    """The index of a protocol in `groups`, to which a new one is appended."""
    if protocol is None:
        return None
    fields = deciding_fields(metric, protocol)
    for number, group in enumerate(groups):
        if not protocol_differences(fields, group):
            return number
    groups.append(fields)
    return len(groups) - 1


def _step_order(score: Score) -> int:
    return -1 if score.step is None else score.step

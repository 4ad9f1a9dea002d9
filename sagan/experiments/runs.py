"""Read run folders: settings, steps, losses, and scores grouped by how they were measured."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from sagan.config.load import differences, load_config
from sagan.config.schema import Config
from sagan.evaluation.registry import DIRECTION, decides
from sagan.evaluation.result import NOT_COMPARED, protocol_differences
from sagan.runs.run_dir import ABOUT, BINDING, CONFIG
from sagan.utils.errors import UserError, first_error
from sagan.utils.io import read_json

LOSSES = ("d_loss", "g_loss")
Step = Annotated[int, Field(ge=0), Strict()]


class LogLine(BaseModel):
    """A line of log.jsonl. Other names are numbers that were logged; NaN marks a diverged value."""

    model_config = ConfigDict(extra="allow")
    step: Step | None = None

    def number(self, name: str) -> float | None:
        """A logged number, if it is there and finite."""
        value = (self.model_extra or {}).get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return None
        return float(value)

    def numbers(self, pattern: str) -> dict[str, float]:
        """All finite numbers whose name matches."""
        names = [name for name in self.model_extra or {} if re.fullmatch(pattern, name)]
        return {name: value for name in names if (value := self.number(name)) is not None}


class MetricsLine(BaseModel):
    """A line of metrics.jsonl. Other names are metrics."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]
    step: Step | None = None
    protocol: dict[str, Any] | None = None
    warnings: list[str] = []

    @property
    def at(self) -> int | None:
        """The step that was scored."""
        return self.protocol.get("checkpoint_step") if self.step is None and self.protocol else self.step

    @property
    def scores(self) -> dict[str, float]:
        found = self.__pydantic_extra__
        return {metric: float(found[metric]) for metric in DIRECTION if found.get(metric) is not None}

    @property
    def numbers(self) -> dict[str, float]:
        """Metrics and the numbers that belong to them, such as kid_std."""
        known = {n: v for n, v in self.__pydantic_extra__.items() if isinstance(v, int | float) and n != "num"}
        return {
            name: float(value) for name, value in known.items() if not isinstance(value, bool) and math.isfinite(value)
        }


Line = TypeVar("Line", LogLine, MetricsLine)


def read_lines(path: Path, kind: type[Line], may_be_cut: bool = False) -> list[Line]:
    """The lines of a file; [] without it. `may_be_cut`: skip a last line without its end, as one being written.

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
        if not text.strip():
            continue
        try:
            line = kind.model_validate(json.loads(text))
            if isinstance(line, MetricsLine):
                _check(line)
        except ValidationError as error:
            raise _damaged(path, number, first_error(error)) from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, _Wrong) else "it is not JSON, or cut short"
            raise _damaged(path, number, reason) from None
        found.append(line)
    return found


class _Wrong(ValueError):
    pass


def _check(line: MetricsLine) -> None:
    for metric in DIRECTION:
        value = line.__pydantic_extra__.get(metric)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise _Wrong(f"{metric} is {value!r}, expected a finite number")
    if line.at is not None and not (isinstance(line.at, int) and not isinstance(line.at, bool) and line.at >= 0):
        raise _Wrong(f"its step is {line.at!r}, expected a whole number")


def _damaged(path: Path, number: int, reason: str) -> UserError:
    return UserError(f"{path}: line {number} is damaged ({reason}); repair or remove that line")


@dataclass(frozen=True)
class Score:
    """One number of metrics.jsonl. `step` and `protocol` are None where its line does not have them."""

    metric: str
    value: float
    step: int | None = None
    protocol: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run. `scores`: in the order of the file; `about`: run.json, {} where it is missing."""

    folder: Path
    name: str
    config: Config
    about: dict[str, Any]
    step: int
    scores: tuple[Score, ...]

    def images(self, step: int) -> int:
        """Images seen after `step` generator updates."""
        return step * self.config.training.batch_size

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.about.get("class_names")
        return tuple(map(str, names)) if isinstance(names, list) else ()


def read_runs(folders: Sequence[Path]) -> tuple[RunRecord, ...]:
    """The runs, under distinct names. UserError for a folder that is no run, is given twice, or has a damaged file."""
    names = unique_names(folders)
    return tuple(_read_run(folder, name) for folder, name in zip(folders, names, strict=True))


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of its parents as distinguish it from the others."""
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

    `data.content_hash` of run.json is one of them: equal sources can hold different images.
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


def read_losses(run: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each of `LOSSES` in log.jsonl; values that are not finite are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(run.folder / "log.jsonl", LogLine, may_be_cut=True):
        for name in LOSSES:
            if line.step is not None and (value := line.number(name)) is not None:
                found.setdefault(name, []).append((line.step, value))
    return found


def _read_run(folder: Path, name: str) -> RunRecord:
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name the folder of a run")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a run, it has no {CONFIG}; name a folder that sagan train made")
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if not isinstance(about, dict):
        raise UserError(f"{folder / ABOUT}: not the record of a run; restore it, or remove it")
    scores = tuple(
        Score(metric, value, line.at, line.protocol, tuple(line.warnings))
        for line in read_lines(folder / "metrics.jsonl", MetricsLine)
        for metric, value in line.scores.items()
    )
    saved = [int(p.name) for kind in BINDING for p in (folder / kind).glob("[0-9]" * 8) if p.is_dir()]
    logged = [line.step for line in read_lines(folder / "log.jsonl", LogLine, may_be_cut=True)[-1:]]
    step = max([0, *saved, *(step for step in [*logged, *(score.step for score in scores)] if step is not None)])
    return RunRecord(folder, name, load_config(folder / CONFIG), about, step, scores)


@dataclass(frozen=True)
class Series:
    """The scores of one run in one metric under one protocol.

    `run`, `group`: indices into `Comparison.runs` and `.groups`; group None: no protocol was recorded, so the scores
    are comparable with nothing. `points`: one for each step, in order; those without a step come first.
    """

    run: int
    metric: str
    group: int | None
    points: tuple[Score, ...]

    @property
    def newest(self) -> Score:
        return self.points[-1]

    @property
    def best(self) -> Score | None:
        """The best point, the earliest of equal ones; None where the points cannot be compared with each other."""
        if self.group is None:
            return None
        return max(self.points, key=lambda point: DIRECTION[self.metric] * point.value)


@dataclass(frozen=True)
class Comparison:
    """Runs and their scores. `groups`: the distinct protocols, reduced to the fields that decide a score."""

    runs: tuple[RunRecord, ...]
    groups: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]

    def metrics(self) -> list[str]:
        """The metrics that some run has, in the order of the registry."""
        return [metric for metric in DIRECTION if any(s.metric == metric for s in self.series)]

    def of(self, metric: str, run: int | None = None) -> list[Series]:
        """The series of a metric, of one run or of all, those with the most points first."""
        found = [s for s in self.series if s.metric == metric and run in (None, s.run)]
        return sorted(found, key=lambda s: (s.group is None, -len(s.points)))

    def columns(self, metric: str) -> list[int | None]:
        """The groups of a metric: those with the most runs, then points, first; None, the unknown protocol, last."""
        series = self.of(metric)
        size = {s.group: (sum(o.group == s.group for o in series),
                          sum(len(o.points) for o in series if o.group == s.group)) for s in series}  # fmt: skip
        return sorted(size, key=lambda g: (g is None, -size[g][0], -size[g][1], g))

    def at(self, metric: str, group: int | None, run: int) -> Series | None:
        return next((s for s in self.of(metric, run) if s.group == group), None)

    def leaders(self, metric: str, group: int | None) -> set[int]:
        """The runs with the best score in a group; none where all are equal, or there is only one."""
        best = {s.run: s.best.value for s in self.of(metric) if s.group == group and s.best}
        if len(set(best.values())) < 2:
            return set()
        top = max(best.values(), key=lambda value: DIRECTION[metric] * value)
        return {run for run, value in best.items() if value == top}


def compare(runs: Sequence[RunRecord], only: str | None = None) -> Comparison:
    """The scores of `runs` by metric and protocol; `only`: of one metric."""
    groups: list[dict[str, Any]] = []
    points: dict[tuple[int, str, int | None], dict[int | None, Score]] = {}
    for place, run in enumerate(runs):
        for score in run.scores:
            if only in (None, score.metric):
                key = place, score.metric, _group_of(score, groups)
                points.setdefault(key, {})[score.step] = score  # measured again at the same step: keep the later one
    series = tuple(Series(*key, points=_in_order(found.values())) for key, found in points.items())
    return Comparison(tuple(runs), tuple(groups), series)


def deciding_fields(metric: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """The fields of a protocol that decide a score of this metric: no parameters of others, seeds or versions."""
    return {
        name: value
        for name, value in protocol.items()
        if value is not None and name not in NOT_COMPARED and decides(name, metric)
    }


def _group_of(score: Score, groups: list[dict[str, Any]]) -> int | None:
    """The index of the score's protocol in `groups`; a new protocol is appended."""
    if score.protocol is None:
        return None
    mine = deciding_fields(score.metric, score.protocol)
    for number, group in enumerate(groups):
        if not protocol_differences(mine, group):
            return number
    groups.append(mine)
    return len(groups) - 1


def _in_order(scores: Iterable[Score]) -> tuple[Score, ...]:
    return tuple(sorted(scores, key=lambda score: -1 if score.step is None else score.step))

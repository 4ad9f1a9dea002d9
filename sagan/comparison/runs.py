"""What a comparison reads of a run's folder: settings, steps, scores, losses. Imports no torch, writes nothing."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagan.config import differences, load_config
from sagan.errors import UserError
from sagan.evaluation.metric_names import DIRECTION
from sagan.files import read_json
from sagan.rundir import ABOUT, BINDING, CONFIG
from sagan.settings import Config

LOSSES = ("d_loss", "g_loss")


@dataclass(frozen=True)
class Score:
    """One number of metrics.jsonl. `step` and `protocol` are None where its line does not say."""

    metric: str
    value: float
    step: int | None = None
    protocol: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its files tell it. `scores`: in the order of the file; `about`: run.json, {} where it is missing."""

    folder: Path
    name: str
    config: Config
    about: dict[str, Any]
    step: int
    scores: tuple[Score, ...]

    def images(self, step: int) -> int:
        """Images seen after `step` generator updates: as many batches."""
        return step * self.config.training.batch_size

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.about.get("class_names")
        return tuple(map(str, names)) if isinstance(names, list) else ()


def read_runs(folders: Sequence[Path]) -> tuple[RunRecord, ...]:
    """The runs, under names that differ. UserError for what is no run, is given twice, or has a damaged file."""
    names = unique_names(folders)
    return tuple(_read_run(folder, name) for folder, name in zip(folders, names, strict=True))


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of its parents as tell it from the others."""
    paths = [folder.resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{folder}: is given twice")
    names = []
    for path in paths:
        tails = ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)]
        others = [other.parts for other in paths if other != path]
        length = next(n for n in range(1, len(tails) + 1) if all(o[-n:] != path.parts[-n:] for o in others))
        names.append(tails[length - 1])
    return names


def differing_settings(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Settings in which the runs differ, by dotted name: the value of each run, None where it has no such setting.

    `data.content_hash` of run.json is one of them: equal sources can hold different images.
    """
    first = runs[0].config
    changed = [differences(first, run.config) for run in runs]
    names = dict.fromkeys(name for pairs in changed for name in pairs)
    settings = {}
    for name in names:
        common = next(pairs[name][0] for pairs in changed if name in pairs)
        settings[name] = [pairs[name][1] if name in pairs else common for pairs in changed]
    groups = [name for name in names if any(other.startswith(f"{name}.") for other in names)]  # {} against its entries
    settings = {name: values for name, values in settings.items() if name not in groups}
    hashes = [run.about.get("content_hash") for run in runs]
    return settings | ({"data.content_hash": hashes} if any(h != hashes[0] for h in hashes) else {})


def read_losses(run: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each of `LOSSES` that log.jsonl holds; values that are not finite are left out."""
    path = run.folder / "log.jsonl"
    records = [_record(path, number, line) for number, line in _lines(path, cut_short_is_fine=True)]
    found = {
        name: [
            (record["step"], float(record[name]))
            for record in records
            if _whole(record.get("step")) and _number(record.get(name)) and math.isfinite(record[name])
        ]
        for name in LOSSES
    }
    return {name: points for name, points in found.items() if points}


def _read_run(folder: Path, name: str) -> RunRecord:
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name the folder of a run")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a run, it has no {CONFIG}; name a folder that sagan train made")
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if not isinstance(about, dict):
        raise UserError(f"{folder / ABOUT}: not the record of a run; restore it, or remove it")
    config, scores = load_config(folder / CONFIG), _read_scores(folder / "metrics.jsonl")
    return RunRecord(folder, name, config, about, _steps_done(folder, scores), scores)


def _read_scores(path: Path) -> tuple[Score, ...]:
    scores = []
    for number, line in _lines(path):
        record = _record(path, number, line)
        protocol, step, warnings = record.get("protocol"), record.get("step"), record.get("warnings", [])
        if not isinstance(protocol, dict | None):
            raise _damaged(path, number, "its protocol is no group of fields")
        if step is None and protocol is not None:
            step = protocol.get("checkpoint_step")
        if step is not None and not _whole(step):
            raise _damaged(path, number, f"its step is {step!r}, expected a whole number")
        if not isinstance(warnings, list):
            raise _damaged(path, number, "its warnings are no list")
        for metric in DIRECTION:
            value = record.get(metric)
            if value is None:
                continue
            if not _number(value) or not math.isfinite(value):
                raise _damaged(path, number, f"{metric} is {value!r}, expected a finite number")
            scores.append(Score(metric, float(value), step, protocol, tuple(map(str, warnings))))
    return tuple(scores)


def _steps_done(folder: Path, scores: Sequence[Score]) -> int:
    """The largest step that any of the run's files tells of."""
    saved = [int(p.name) for kind in BINDING for p in (folder / kind).glob("[0-9]" * 8) if p.is_dir()]
    log = folder / "log.jsonl"
    logged = [_record(log, *line).get("step") for line in _lines(log, cut_short_is_fine=True)[-1:]]
    scored = [score.step for score in scores]
    return max([0, *saved, *(step for step in [*logged, *scored] if _whole(step))])


def _lines(path: Path, cut_short_is_fine: bool = False) -> list[tuple[int, str]]:
    """The lines of a file with their numbers, without empty ones; [] without the file.

    `cut_short_is_fine`: a last line without its end is left out, as one that is being written.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    lines = text.split("\n")
    whole = lines[:-1] if cut_short_is_fine else lines
    return [(number, line) for number, line in enumerate(whole, 1) if line.strip()]


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise _damaged(path, number, "it is not JSON, or cut short") from None
    if not isinstance(record, dict):
        raise _damaged(path, number, "it is not an object of names and values")
    return record


def _damaged(path: Path, number: int, reason: str) -> UserError:
    return UserError(f"{path}: line {number} is damaged ({reason}); repair or remove that line")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The numbers of an ablation's runs, from their files, and their mean over seeds. Imports no torch."""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagan.commands.ablate_plan import Ablation, Key, Outcome
from sagan.comparison.scores import deciding_fields
from sagan.errors import UserError
from sagan.evaluation.metric_names import DIRECTION
from sagan.evaluation.protocol import protocol_differences

HEALTH = re.compile(r"([gd])_(gamma|entropy|far_mass)/(.+)")  # as a run logs them: player, number, module or map
PLAYERS = {"g": "generator", "d": "discriminator"}
NOT_SCORES = ("step", "num")


@dataclass(frozen=True)
class Measured:
    """What one finished run's files say. `health`: the last gamma, entropy and far_mass, by their names in the log."""

    seed: int
    step: int
    scores: dict[str, float]
    protocol: dict[str, Any]
    images_per_second: float
    peak_mib: float
    seconds: float
    health: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A variant and its finished runs."""

    name: str
    parameters: tuple[int, int]
    runs: tuple[Measured, ...]

    def values(self, metric: str) -> list[float]:
        return [run.scores[metric] for run in self.runs if metric in run.scores]

    def health(self, player: str, number: str) -> dict[str, list[float]]:
        """Module or map -> one value a run."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for name, value in run.health.items():
                match = HEALTH.fullmatch(name)
                if match is not None and match.groups()[:2] == (player, number):
                    found.setdefault(match[3], []).append(value)
        return found


def rows_of(ablation: Ablation) -> list[Row]:
    """A row for each variant, in their order; without numbers where no run is done."""
    return [
        Row(
            name,
            ablation.parameters.get(name, (0, 0)),
            tuple(
                measured(ablation.run_folder(key), key, ablation.runs[key])
                for key in sorted(ablation.runs)
                if key[0] == name and ablation.finished(key)
            ),
        )
        for name in ablation.variants
    ]


def measured(run: Path, key: Key, outcome: Outcome) -> Measured:
    """The numbers of a finished run. UserError where its files lack them."""
    step = max(int(path.name) for path in (run / "snapshots").glob("[0-9]" * 8))
    scored = next((line for line in _records(run / "metrics.jsonl") if line.get("step") == step), None)
    if scored is None:
        raise UserError(f"{run / 'metrics.jsonl'}: has no scores of the last step, {step}; remove {run} and train anew")
    log = _records(run / "log.jsonl")
    rates, memory = (
        [float(line[name]) for line in log if name in line] for name in ("images_per_second", "memory_mib")
    )
    if not rates or not memory:
        raise UserError(f"{run / 'log.jsonl'}: is missing or damaged; remove {run} and train anew")
    return Measured(
        seed=key[1],
        step=step,
        scores={name: float(v) for name, v in scored.items() if _number(v) and name not in NOT_SCORES},
        protocol=scored.get("protocol") or {},
        images_per_second=statistics.median(rates),
        peak_mib=max(memory) if outcome.peak_mib is None else outcome.peak_mib,
        seconds=outcome.seconds,
        health={name: float(v) for name, v in log[-1].items() if _number(v) and HEALTH.fullmatch(name)},
    )


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The scores that some row has, in the order in which they are shown."""
    return [metric for metric in DIRECTION if any(row.values(metric) for row in rows)]


def leaders(rows: Sequence[Row], metric: str) -> set[str]:
    """The variants with the best mean; none where all are equal, or scores were not measured alike."""
    means = {row.name: statistics.fmean(values) for row in rows if (values := row.values(metric))}
    if len(set(means.values())) < 2 or unlike(rows, metric):
        return set()
    best = max(means.values(), key=lambda mean: DIRECTION[metric] * mean)
    return {name for name, mean in means.items() if mean == best}


def unlike(rows: Sequence[Row], metric: str) -> bool:
    """Whether some scores of a metric were measured otherwise than the others, so that they cannot be compared."""
    protocols = [deciding_fields(metric, run.protocol) for row in rows for run in row.runs if metric in run.scores]
    return any(protocol_differences(protocols[0], other) for other in protocols[1:])


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (divisor n - 1; null for one value) and the values."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


def record_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything as plain values, for JSON: an object a variant."""
    return [_record_of_row(row) for row in rows]


def _record_of_row(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": row.name,
        "parameters": dict(zip(PLAYERS.values(), row.parameters, strict=True)),
        "n": len(row.runs),
        "seeds": [run.seed for run in row.runs],
    }
    if not row.runs:
        return record
    record |= {
        "steps": [run.step for run in row.runs],
        **{
            name: mean_and_spread([getattr(run, name) for run in row.runs])
            for name in ("images_per_second", "peak_mib", "seconds")
        },
        "scores": {name: mean_and_spread(row.values(name)) for name in row.runs[0].scores},
        "attention": {
            f"{player}_{number}/{name}": mean_and_spread(values)
            for player in PLAYERS
            for number in ("gamma", "entropy", "far_mass")
            for name, values in row.health(player, number).items()
        },
        "protocol": row.runs[0].protocol,
    }
    return record


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of objects; [] without it, a line that was cut short left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""An ablation: variants of a config, their runs, and the record of both in a folder."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from sagan.config.load import differences, load_config, make_config
from sagan.config.options import parse_seeds
from sagan.config.schema import Config
from sagan.evaluation.registry import check_names
from sagan.experiments.table import value_text
from sagan.runs.run_dir import final_snapshot
from sagan.utils.errors import UserError, first_error
from sagan.utils.io import atomic_file, read_json, write_json

RECORD, LONGEST_NAME, PLAIN = "ablation.json", 100, re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]*")
HARMLESS = (  # settings that may change between sessions of one ablation
    "seed", "data.prepared", "training.device", "training.log_every", "training.sample_every",
    "training.snapshot_every", "training.checkpoint_every", "training.keep_checkpoints", "training.trackers",
)  # fmt: skip
Key = tuple[str, int]  # variant, seed
Settings = dict[str, Any]  # as `--set` takes them


def parse_axis(text: str) -> tuple[tuple[str, ...], list[Any]]:
    """ "a.b+c.d=v1,{e: 1},null" -> keys (a.b, c.d) and three values: YAML, split at the commas outside brackets."""
    names, equals, values = text.partition("=")
    keys = tuple(name.strip() for name in names.split("+"))
    if not equals or not all(key.strip(". ") for key in keys):
        raise UserError(f"--vary {text}: expected KEY=VALUE,VALUE, such as generator.attention.16=self_attention,null")
    try:
        found = yaml.safe_load(f"[{values}\n]")
        json.dumps(found)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        raise UserError(f"--vary {text}: the values are not readable as YAML, separated by commas") from None
    if not found:
        raise UserError(f"--vary {text}: no value is given; such as {keys[0]}=VALUE,VALUE, null for none")
    for key in keys:
        if key == "seed":
            raise UserError("--vary seed: use --seeds")
        if key.split(".")[0] == "evaluate":
            raise UserError(f"--vary {key}: all variants need the same evaluation; change it with --set")
    return keys, [value["name"] if isinstance(value, dict) and [*value] == ["name"] else value for value in found]


def variants_of(axes: Sequence[tuple[tuple[str, ...], list[Any]]]) -> dict[str, Settings]:
    """Name -> settings of every combination of values, the last axis changing fastest."""
    keys = [key for axis_keys, _ in axes for key in axis_keys]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--vary: {key} is varied twice; give all of its values at once")
    heads = [_short_key(axis_keys[0], [other[0] for other, _ in axes]) for axis_keys, _ in axes]
    variants: dict[str, Settings] = {}
    for values in itertools.product(*(axis_values for _, axis_values in axes)):
        parts = [_part(head, value, len(axes) == 1) for head, value in zip(heads, values, strict=True)]
        name = _file_name("+".join(parts))
        if name in variants:
            raise UserError(f"--vary: the variant {name} comes twice; leave one out")
        variants[name] = {key: value for (each, _), value in zip(axes, values, strict=True) for key in each}
    return variants


def _part(head: str, value: Any, alone: bool) -> str:
    """A value in a name, without its key if it is a mechanism or none and nothing else varies."""
    named = value is None or isinstance(value, str) or (isinstance(value, dict) and "name" in value)
    return _words(value) if alone and named else f"{head}={_words(value)}"


def _words(value: Any) -> str:
    if value is None or isinstance(value, str):
        return "none" if value is None else value
    if isinstance(value, dict):
        named = [str(value["name"])] if "name" in value else []
        return ",".join([*named, *(f"{key}={_words(v)}" for key, v in value.items() if key != "name")]) or "none"
    if isinstance(value, list):
        return ",".join(map(_words, value)) or "none"
    return json.dumps(value, separators=(",", ":"))


def _short_key(key: str, keys: Sequence[str]) -> str:
    """The part of a key that distinguishes it: "generator" next to discriminator.attention.16, else its last word."""
    parts = key.split(".")
    if len(keys) > 1 and len({other.split(".", 1)[-1] for other in keys}) == 1:
        return parts[0]
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    tail = ".".join(parts[start:])
    return tail if [other for other in keys if other.endswith(f".{tail}") or other == tail] == [key] else key


def _file_name(name: str) -> str:
    """The name or, if it is too long or unsafe as a file name, a plain form with a hash."""
    if PLAIN.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._=+,-]+", "_", name).strip("_.-")[: LONGEST_NAME - 9]
    return f"{plain}-{digest}" if plain else digest


# --- the record


class RunState(BaseModel):
    """The state of one run. `seconds`, `peak_mib`: of its processes; `peak_mib` is None on a GPU."""

    variant: str
    seed: int
    state: Literal["waiting", "done", "failed", "stopped"] = "waiting"
    reason: str = ""
    seconds: float = 0.0
    peak_mib: float | None = None


class VariantRecord(BaseModel):
    name: str
    values: list[Any]


class AblationRecord(BaseModel):
    """ablation.json."""

    config: dict[str, Any]
    keys: list[str]
    variants: list[VariantRecord]
    parameters: dict[str, tuple[int, int]] = {}
    runs: list[RunState]
    results: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "AblationRecord":
        names = {variant.name for variant in self.variants}
        if not names or any(len(variant.values) != len(self.keys) for variant in self.variants):
            raise ValueError("its variants do not fit its keys")
        if unknown := {run.variant for run in self.runs} - names:
            raise ValueError(f"no variant {min(unknown)}")
        return self


@dataclass
class Ablation:
    """Variants of one config and their runs, in a folder. `parameters`: of generator and discriminator."""

    folder: Path
    base: Config
    variants: dict[str, Settings] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    runs: dict[Key, RunState] = field(default_factory=dict)
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run_folder(self, key: Key) -> Path:
        return self.folder / "runs" / f"{key[0]}-seed{key[1]}"

    def output_file(self, key: Key) -> Path:
        return self.folder / "output" / f"{key[0]}-seed{key[1]}.txt"

    def config_file(self, variant: str) -> Path:
        return self.folder / "variants" / f"{variant}.yaml"

    def finished(self, key: Key) -> bool:
        """Whether nothing is left to train: all steps are done, or the run stopped early by itself."""
        run = self.run_folder(key)
        early = self.runs[key].state == "done" and any((run / "snapshots").glob("*"))
        return early or final_snapshot(run, self.configs[key[0]].training.steps) is not None

    def save(self, results: dict[str, Any]) -> None:
        """Write variants/*.yaml and ablation.json."""
        for name, config in self.configs.items():
            with atomic_file(self.config_file(name)) as temporary:
                temporary.write_text(config.to_yaml())
        record = AblationRecord(
            config=self.base.to_dict(), keys=[*next(iter(self.variants.values()))], parameters=self.parameters,
            variants=[VariantRecord(name=name, values=[*each.values()]) for name, each in self.variants.items()],
            runs=[*self.runs.values()], results=results,
        )  # fmt: skip
        write_json(self.folder / RECORD, record.model_dump(mode="json"))


def plan_ablation(
    folder: Path, config: str, vary: Sequence[str], seeds: str | None, overrides: Sequence[str]
) -> Ablation:
    """The variants of a config, each with every seed: seed by seed, so that every variant has its first run early."""
    variants = variants_of([parse_axis(text) for text in vary])
    base = load_config(config, [*overrides])
    check_names(base.evaluate.metrics, "evaluate.metrics")
    if not base.evaluate.every or not base.evaluate.metrics:
        raise UserError(
            f"{config}: evaluates nothing, so variants could not be compared; add --set evaluate.every="
            f"{base.training.steps} --set evaluate.metrics=[fid] (or others, docs/evaluation.md)"
        )
    plan = Ablation(folder, base, variants)
    for name, settings in variants.items():
        with variant_errors(name):
            changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
            plan.configs[name] = load_config(config, [*overrides, *changes])
    for seed in [base.seed] if seeds is None else parse_seeds(seeds):
        plan.runs |= {(name, seed): RunState(variant=name, seed=seed) for name in variants}
    return plan


@contextmanager
def variant_errors(name: str) -> Iterator[None]:
    """Prefix a UserError with the variant."""
    try:
        yield
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from None


def read_ablation(folder: Path) -> Ablation | None:
    """Read the ablation in a folder; None if the folder is missing or empty."""
    path = folder / RECORD
    if not path.is_file():
        others = [p.name for p in (folder.iterdir() if folder.is_dir() else ()) if not p.name.startswith(".")]
        if others:
            raise UserError(
                f"{folder}: not an ablation and not empty (it holds {min(others)}); name a new folder with --out"
            )
        return None
    try:
        record = AblationRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: not the record of an ablation ({first_error(error)}); restore or remove it") from None
    variants = {v.name: dict(zip(record.keys, v.values, strict=True)) for v in record.variants}
    ablation = Ablation(folder, make_config(record.config, where=str(path)), variants, parameters=record.parameters)
    ablation.configs = {name: load_config(ablation.config_file(name)) for name in variants}
    ablation.runs = {(run.variant, run.seed): run for run in record.runs}
    return ablation


def merged(plan: Ablation) -> Ablation:
    """The ablation in the plan's folder, if any, with the plan's variants and runs added.

    UserError if the folder varies other settings or another config, or if two variants have the same settings.
    """
    folder, old = plan.folder, read_ablation(plan.folder) or Ablation(plan.folder, plan.base)
    there, now = ([*next(iter(each.values()), {})] for each in (old.variants, plan.variants))
    if old.variants and there != now:
        raise UserError(
            f"{folder}: holds an ablation of {', '.join(there)}, not of {', '.join(now)}; name a new folder with --out"
        )
    if changed := _changed(old.base, plan.base):
        pairs = [f"{name}: {value_text(a)} there, {value_text(b)} now" for name, (a, b) in changed.items()]
        raise UserError(
            f"{folder}: holds an ablation of another config ({'; '.join(pairs[:3])}); name a new folder with --out"
        )
    configs = old.configs | plan.configs
    for name, config in plan.configs.items():
        for other, settings in configs.items():
            if other != name and not _changed(settings, config):
                raise UserError(f"--vary: the variants {other} and {name} are the same settings; leave one out")
        if name in old.configs and _changed(old.configs[name], config):
            raise UserError(f"{folder}: has another variant {name}; name a new folder with --out")
    runs = old.runs | {key: run for key, run in plan.runs.items() if key not in old.runs}
    parameters = old.parameters | plan.parameters
    return Ablation(folder, plan.base, old.variants | plan.variants, configs, runs, parameters)


def _changed(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Differing settings that keep runs out of one table."""
    return {name: pair for name, pair in differences(one, other).items() if not name.startswith(HARMLESS)}

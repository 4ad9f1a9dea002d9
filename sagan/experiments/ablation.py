"""An ablation: the variants of a config, the runs that were asked for, and their record in a folder."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from sagan.config.load import differences, load_config, make_config
from sagan.config.options import parse_seeds
from sagan.config.schema import Config
from sagan.evaluation.registry import check_names
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
            raise UserError("--vary seed: use --seeds; variants are compared over the same seeds")
        if key.split(".")[0] == "evaluate":
            raise UserError(f"--vary {key}: variants must be scored alike; change it for all with --set")
    return keys, [value["name"] if isinstance(value, dict) and [*value] == ["name"] else value for value in found]


def variants_of(axes: Sequence[tuple[tuple[str, ...], list[Any]]]) -> dict[str, Settings]:
    """Name -> settings of every combination of the values, the last axis changing fastest."""
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
    """A value in a name; a mechanism, or none, needs no key where nothing else varies."""
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
    """The name, or where it holds other characters than a file name should, a plain form with a hash."""
    if PLAIN.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._=+,-]+", "_", name).strip("_.-")[: LONGEST_NAME - 9]
    return f"{plain}-{digest}" if plain else digest


@dataclass(frozen=True)
class Plan:
    """Variants of a config, each with these seeds."""

    base: Config
    variants: dict[str, Settings]
    configs: dict[str, Config]
    seeds: list[int]

    @property
    def runs(self) -> list[Key]:
        """Seed by seed, so that every variant has its first run early."""
        return [(name, seed) for seed in self.seeds for name in self.variants]


def make_plan(config: str, vary: Sequence[str], seeds: str | None, overrides: Sequence[str]) -> Plan:
    variants = variants_of([parse_axis(text) for text in vary])
    base = load_config(config, [*overrides])
    check_names(base.evaluate.metrics, "evaluate.metrics")
    if not base.evaluate.every or not base.evaluate.metrics:
        raise UserError(
            f"{config}: evaluates nothing, so variants could not be compared; add --set evaluate.every="
            f"{base.training.steps} --set evaluate.metrics=[fid] (or others, docs/evaluation.md)"
        )
    configs = {}
    for name, settings in variants.items():
        changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        configs[name] = of_variant(name, load_config, config, [*overrides, *changes])
    return Plan(base, variants, configs, [base.seed] if seeds is None else list(parse_seeds(seeds)))


def of_variant(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), its UserError prefixed with the variant."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from None


# --- the record


class RunRecord(BaseModel):
    """One run. `seconds`, `peak_mib`: of the processes that trained it; `peak_mib` is None on a GPU."""

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
    runs: list[RunRecord]
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
    """A folder's variants of one config and their runs. `parameters`: of generator and discriminator."""

    folder: Path
    base: Config
    variants: dict[str, Settings] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    runs: dict[Key, RunRecord] = field(default_factory=dict)
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run_folder(self, key: Key) -> Path:
        return self.folder / "runs" / f"{key[0]}-seed{key[1]}"

    def output_file(self, key: Key) -> Path:
        return self.folder / "output" / f"{key[0]}-seed{key[1]}.txt"

    def config_file(self, variant: str) -> Path:
        return self.folder / "variants" / f"{variant}.yaml"

    def finished(self, key: Key) -> bool:
        """Whether nothing is left to train: all steps are done, or the run ended early by itself."""
        run = self.run_folder(key)
        early = self.runs[key].state == "done" and any((run / "snapshots").glob("*"))
        return early or final_snapshot(run, self.configs[key[0]].training.steps) is not None

    def save(self, results: dict[str, Any]) -> None:
        for name, config in self.configs.items():
            with atomic_file(self.config_file(name)) as temporary:
                temporary.write_text(config.to_yaml())
        record = AblationRecord(
            config=self.base.to_dict(), keys=[*next(iter(self.variants.values()))], parameters=self.parameters,
            variants=[VariantRecord(name=name, values=[*each.values()]) for name, each in self.variants.items()],
            runs=[*self.runs.values()], results=results,
        )  # fmt: skip
        write_json(self.folder / RECORD, record.model_dump(mode="json"))


def read_ablation(folder: Path) -> Ablation | None:
    """The ablation in a folder; None where the folder is missing or empty."""
    path = folder / RECORD
    if not path.is_file():
        others = [p.name for p in (folder.iterdir() if folder.is_dir() else ()) if not p.name.startswith(".")]
        if others:
            raise UserError(
                f"{folder}: is no ablation and not empty (it holds {min(others)}); name a new folder with --out"
            )
        return None
    try:
        record = AblationRecord.model_validate(read_json(path))
    except ValidationError as error:
        reason = first_error(error)
        raise UserError(f"{path}: is not the record of an ablation ({reason}); restore it, or begin anew") from None
    ablation = Ablation(folder, make_config(record.config, where=str(path)), parameters=record.parameters)
    ablation.variants = {v.name: dict(zip(record.keys, v.values, strict=True)) for v in record.variants}
    ablation.configs = {name: load_config(ablation.config_file(name)) for name in ablation.variants}
    ablation.runs = {(run.variant, run.seed): run for run in record.runs}
    return ablation


def merged(folder: Path, plan: Plan) -> Ablation:
    """The ablation in `folder`, if any, with the variants and runs of `plan` added.

    UserError where the folder varies other settings or another config, or two variants have the same settings.
    """
    old = read_ablation(folder) or Ablation(folder, plan.base)
    there, now = ([*next(iter(each.values()), {})] for each in (old.variants, plan.variants))
    if old.variants and there != now:
        raise UserError(
            f"{folder}: holds an ablation of {', '.join(there)}, not of {', '.join(now)}; name a new folder with --out"
        )
    if changed := _changed(old.base, plan.base):
        pairs = [
            (name, [str(v) if len(str(v)) <= 40 else f"{str(v)[:37]}..." for v in p]) for name, p in changed.items()
        ]
        shown = "; ".join(f"{name}: {before} there, {after} now" for name, (before, after) in pairs[:3])
        raise UserError(f"{folder}: holds an ablation of another config ({shown}); name a new folder with --out")
    known = old.configs
    new = Ablation(
        folder, plan.base, old.variants | plan.variants, known | plan.configs, dict(old.runs), dict(old.parameters)
    )
    for key in plan.runs:
        new.runs.setdefault(key, RunRecord(variant=key[0], seed=key[1]))
    for name, config in plan.configs.items():
        for other, settings in new.configs.items():
            if other != name and not _changed(settings, config):
                raise UserError(f"--vary: the variants {other} and {name} are the same settings; leave one out")
        if name in known and _changed(known[name], config):
            raise UserError(f"{folder}: has another variant {name}; name a new folder with --out")
    return new


def _changed(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings whose difference keeps runs out of one table."""
    return {name: pair for name, pair in differences(one, other).items() if not name.startswith(HARMLESS)}

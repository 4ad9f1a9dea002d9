"""The plan of an ablation and how far it has come, as its ablation.json keeps them. Imports no torch."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sagan.commands.ablate_options import RECORD, Options
from sagan.commands.ablate_vary import Variant, parse_axis, variants_of
from sagan.config import differences, load_config, make_config
from sagan.errors import UserError
from sagan.evaluation.choices import check_names
from sagan.files import atomic_file, read_json, write_json
from sagan.rundir import final_snapshot
from sagan.selections import parse_seeds
from sagan.settings import Config

HARMLESS = (  # may change from one session of an ablation to the next
    "seed", "data.prepared", "training.device", "training.log_every", "training.sample_every",
    "training.snapshot_every", "training.checkpoint_every", "training.keep_checkpoints", "training.trackers",
)  # fmt: skip
Key = tuple[str, int]  # variant, seed


@dataclass(frozen=True)
class Outcome:
    """What became of a run so far. `state`: waiting, done, failed or stopped.

    `seconds` and `peak_mib` (resident memory of the process, None on a GPU, where the run's log has it) are those of
    the processes that trained it.
    """

    state: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    peak_mib: float | None = None


@dataclass(frozen=True)
class Ablation:
    """A folder's variants of one config, and the runs that were asked for."""

    folder: Path
    base: Config
    variants: dict[str, Variant]
    configs: dict[str, Config]  # of each variant; the runs add their seeds
    runs: dict[Key, Outcome]
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # variant -> of generator, discriminator

    @property
    def keys(self) -> list[str]:
        """The settings that vary, as `--set` takes them."""
        return [*next(iter(self.variants.values())).settings]

    def run_folder(self, key: Key) -> Path:
        return self.folder / "runs" / run_name(key)

    def output_file(self, key: Key) -> Path:
        """What a run's processes said."""
        return self.folder / "output" / f"{run_name(key)}.txt"

    def finished(self, key: Key) -> bool:
        """Whether nothing is left to train: the last step is done, or the run has ended early by itself."""
        run = self.run_folder(key)
        early = self.runs[key].state == "done" and any((run / "snapshots").glob("*"))
        return early or final_snapshot(run, self.configs[key[0]].training.steps) is not None


def run_name(key: Key) -> str:
    return f"{key[0]}-seed{key[1]}"


@dataclass(frozen=True)
class Plan:
    """What a command asks for: variants of a config, with their configs, each with these seeds."""

    base: Config
    variants: dict[str, Variant]
    configs: dict[str, Config]
    seeds: list[int]

    @property
    def runs(self) -> list[Key]:
        """Seed by seed, so that every variant has a first run early."""
        return [(name, seed) for seed in self.seeds for name in self.variants]


def config_file(folder: Path, variant: str) -> Path:
    return folder / "variants" / f"{variant}.yaml"


def plan_of(options: Options) -> Plan:
    """The plan that the options name. UserError for what is wrong with it."""
    variants = variants_of([parse_axis(text) for text in options.vary])
    overrides = [*options.overrides]
    if options.reference is not None:  # as a string of YAML: a folder may be called 3
        overrides.append(f"evaluate.reference={json.dumps(options.reference)}")
    base = load_config(options.config, overrides)
    seeds = [base.seed] if options.seeds is None else list(parse_seeds(options.seeds))
    check_names(base.evaluate.metrics, "evaluate.metrics")
    if not base.evaluate.every or not base.evaluate.metrics:
        raise UserError(
            f"{options.config}: evaluates nothing, so variants could not be compared; add --set evaluate.every="
            f"{base.training.steps} --set evaluate.metrics=[fid] (or others, docs/evaluation.md)"
        )
    configs = {}
    for variant in variants:
        try:
            configs[variant.name] = load_config(options.config, [*overrides, *variant.overrides])
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from None
    return Plan(base, {variant.name: variant for variant in variants}, configs, seeds)


def merged(folder: Path, plan: Plan) -> Ablation:
    """The ablation in `folder`, if there is one, with the variants and runs of `plan` in addition.

    UserError when what is there varies other settings or another config, is something else, or has a variant that
    comes to the same settings.
    """
    old = read_ablation(folder)
    if old is None:
        old = Ablation(folder, plan.base, {}, {}, {})
    else:
        _check_same(old, plan)
    new = replace(
        old, base=plan.base, variants=old.variants | plan.variants, configs=old.configs | plan.configs,
        runs=old.runs | {key: old.runs.get(key, Outcome()) for key in plan.runs},
    )  # fmt: skip
    for name, config in plan.configs.items():
        for other, settings in new.configs.items():
            if other != name and not _changed(settings, config):
                raise UserError(f"--vary: the variants {other} and {name} are the same settings; leave one out")
        if name in old.configs and _changed(old.configs[name], config):
            raise UserError(f"{folder}: has another variant {name}; name a new folder with --out")
    return new


def read_ablation(folder: Path) -> Ablation | None:
    """The ablation of a folder; None where the folder is missing or empty, UserError where it holds something else."""
    path = folder / RECORD
    if not path.is_file():
        others = [p.name for p in (folder.iterdir() if folder.is_dir() else ()) if not p.name.startswith(".")]
        if others:
            raise UserError(
                f"{folder}: is no ablation and not empty (it holds {min(others)}); name a new folder with --out"
            )
        return None
    record = read_json(path)
    try:
        keys = [str(key) for key in record["keys"]]
        variants = {
            one["name"]: Variant(one["name"], dict(zip(keys, one["values"], strict=True))) for one in record["variants"]
        }
        runs = {
            (run["variant"], int(run["seed"])): Outcome(
                run["state"], run["reason"], float(run["seconds"]), run["peak_mib"]
            )
            for run in record["runs"]
        }
        parameters = {name: (int(g), int(d)) for name, (g, d) in record["parameters"].items()}
        raw = dict(record["config"])
        if unknown := {variant for variant, _ in runs} - variants.keys():
            raise ValueError(f"no variant {min(unknown)}")
        if not variants:
            raise ValueError("no variants")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is not the record of an ablation ({error!r}); restore it, or begin anew") from None
    configs = {name: load_config(config_file(folder, name)) for name in variants}
    return Ablation(folder, make_config(raw, where=str(path)), variants, configs, runs, parameters)


def save_ablation(ablation: Ablation, results: dict[str, Any]) -> None:
    """Write ablation.json: config, variants, runs, and what is known of their results; and a config a variant."""
    for name, config in ablation.configs.items():
        with atomic_file(config_file(ablation.folder, name)) as temporary:
            temporary.write_text(config.to_yaml())
    runs = [{"variant": variant, "seed": seed, **asdict(run)} for (variant, seed), run in ablation.runs.items()]
    write_json(
        ablation.folder / RECORD,
        {
            "config": ablation.base.to_dict(),
            "keys": ablation.keys,
            "variants": [{"name": one.name, "values": [*one.settings.values()]} for one in ablation.variants.values()],
            "parameters": ablation.parameters,
            "runs": runs,
            "results": results,
        },
    )


def _check_same(old: Ablation, plan: Plan) -> None:
    there, now = old.keys, [*next(iter(plan.variants.values())).settings]
    if there != now:
        raise UserError(
            f"{old.folder}: holds an ablation of {', '.join(there)}, not of {', '.join(now)}; "
            "name a new folder with --out"
        )
    changed = _changed(old.base, plan.base)
    if changed:
        shown = "; ".join(f"{name}: {there} there, {now} now" for name, (there, now) in _some(changed))
        raise UserError(f"{old.folder}: holds an ablation of another config ({shown}); name a new folder with --out")


def _changed(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ so that their runs could not stand in one table."""
    return {name: pair for name, pair in differences(one, other).items() if not name.startswith(HARMLESS)}


def _some(changed: dict[str, tuple[Any, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """The first three differences, shortened."""
    for name, pair in [*changed.items()][:3]:
        there, now = (text if len(text := str(value)) <= 40 else f"{text[:37]}..." for value in pair)
        yield name, (there, now)

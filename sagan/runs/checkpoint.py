"""Checkpoints: the resumable state of a run, as safetensors and JSON with checksums, written atomically."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sagan.config.load import load_config
from sagan.config.schema import Config
from sagan.layers.spectral_norm import refresh_spectral_norm
from sagan.models.discriminator import Discriminator
from sagan.models.gan import GAN
from sagan.models.generator import Generator, build_discriminator, build_generator, remove_spectral_norm
from sagan.models.hub import load_exactly, read_tensors, save_tensors
from sagan.utils.errors import UserError
from sagan.utils.io import TEMPORARY, atomic_folder, read_json, remove_folder, sha256, write_json

STATE = "state.json"
NETWORKS = {"generator": "generator", "discriminator": "discriminator", "average": "ema"}  # file -> attribute of GAN
OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        best, best_step: the best score so far and its step; stale: how many later scores were not better.
        scaler: state of the fp16 loss scaler.
        rollbacks, rate: number of rollbacks after divergence, and the resulting factor of the learning rates.
        saturated_since: first step of the current saturation of the discriminator.
        records: best value of each score that the divergence monitor watches.
        scored: identifies what `best` and `records` compare.
        processes: how many processes wrote the checkpoint.
        unscored: whether the evaluation of this step was interrupted.
    """

    step: int
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    scaler: dict[str, Any] | None = None
    rollbacks: int = 0
    rate: float = 1.0
    saturated_since: int | None = None
    records: dict[str, float] = field(default_factory=dict)
    scored: str | None = None
    processes: int | None = None
    unscored: bool = False


def save_checkpoint(folder: Path, gan: GAN, progress: Progress) -> None:
    """Write a checkpoint folder atomically, with the SHA-256 of every file in it."""
    with atomic_folder(folder) as temporary:
        for name, attribute in NETWORKS.items():
            save_tensors(getattr(gan, attribute).state_dict(), temporary / f"{name}.safetensors")
        groups = {}
        for name in OPTIMIZERS:
            state = getattr(gan, name).state_dict()
            tensors = {f"{i}.{k}": torch.as_tensor(v) for i, s in state["state"].items() for k, v in s.items()}
            save_tensors(tensors, temporary / f"{name}.safetensors")
            groups[name] = [{k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()}
                            for group in state["param_groups"]]  # fmt: skip
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        state = {**asdict(progress), "param_groups": groups, "sha256": checksums}
        write_json(temporary / STATE, {**state, "state_sha256": _digest(state)})


def load_checkpoint(folder: Path, gan: GAN) -> Progress:
    """Load a checkpoint into networks and optimizers. Raises UserError if it is damaged or of another architecture."""
    state = verify_checkpoint(folder)
    for name, attribute in NETWORKS.items():
        load_exactly(getattr(gan, attribute), read_tensors(folder / f"{name}.safetensors"), f"{folder}/{name}")
    for name in OPTIMIZERS:
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for key, tensor in read_tensors(folder / f"{name}.safetensors").items():
            index, _, entry = key.partition(".")
            per_parameter.setdefault(int(index), {})[entry] = tensor
        groups = [{k: tuple(v) if k == "betas" else v for k, v in g.items()} for g in state["param_groups"][name]]
        getattr(gan, name).load_state_dict({"state": per_parameter, "param_groups": groups})
    return progress_of(state)


def progress_of(state: dict[str, Any]) -> Progress:
    """The progress in a verified state.json; fields that older checkpoints lack get their defaults."""
    return Progress(**{entry.name: state[entry.name] for entry in fields(Progress) if entry.name in state})


def mark_checkpoint(folder: Path, progress: Progress) -> None:
    """Replace the progress in the state.json of a checkpoint, atomically; its tensors are unchanged."""
    state = {**verify_checkpoint(folder), **asdict(progress)}
    write_json(folder / STATE, {**state, "state_sha256": _digest(state)})


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Read state.json. Raises UserError unless every file is there and has its checksum."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder}: damaged checkpoint, {STATE} is missing")
    state = read_json(folder / STATE)
    if not isinstance(state, dict) or state.get("state_sha256") != _digest(state):
        raise UserError(f"{folder}: damaged checkpoint, {STATE} does not have the SHA-256 it was written with")
    if not {"step", "best_step", "param_groups", "sha256"} <= state.keys() or not isinstance(state["sha256"], dict):
        raise UserError(f"{folder}: damaged checkpoint, {STATE} is not that of a checkpoint")
    for name, expected in state["sha256"].items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise UserError(f"{folder}: damaged checkpoint, {name} is missing")
        if sha256(path) != expected:
            raise UserError(f"{folder}: damaged checkpoint, {name} does not have the SHA-256 it was written with")
    return state


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    folder = run / "checkpoints"
    return sorted(p for p in folder.iterdir() if p.name.isascii() and p.name.isdigit()) if folder.is_dir() else []


def newest_whole_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with newer ones."""
    problems = []
    for folder in reversed(list_checkpoints(run)):
        try:
            verify_checkpoint(folder)
            return folder, problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


def require_whole_checkpoint(run: Path) -> Path:
    """The newest undamaged checkpoint of a run. Raises UserError, with the problems found, if there is none."""
    checkpoint, problems = newest_whole_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: this run has no whole checkpoint {'; '.join(problems)}".strip())
    return checkpoint


def prune_checkpoints(run: Path, keep: int, progress: Progress) -> None:
    """Remove all checkpoints but the newest `keep` and the best, and incomplete ones of interrupted processes.

    Checkpoints after the current step are removed too: they are damaged, since the run resumed from an earlier one.
    """
    folders = list_checkpoints(run)
    abandoned = [folder for folder in folders if int(folder.name) > progress.step]
    older = [folder for folder in folders if folder not in abandoned][:-keep]
    for folder in [*abandoned, *(f for f in older if int(f.name) != progress.best_step)]:
        remove_folder(folder)
    for leftover in (run / "checkpoints").glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of all other entries of state.json."""
    rest = {name: value for name, value in state.items() if name != "state_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


WEIGHTS = {"averaged": "average", "raw": "generator"}  # kind -> file


def load_generators(checkpoint: Path) -> dict[str, Generator]:
    """The "averaged" and the "raw" generator of a checkpoint, as in a snapshot.

    Raises UserError if the checkpoint is damaged or not in the folder of a run.
    """
    verify_checkpoint(checkpoint)
    config, classes, names = _of_run(checkpoint)
    found = {}
    for kind, file in WEIGHTS.items():
        generator = build_generator(config, classes, names)
        load_exactly(generator, read_tensors(checkpoint / f"{file}.safetensors"), f"{checkpoint}/{file}")
        refresh_spectral_norm(generator)
        generator.memory_format = torch.channels_last
        found[kind] = remove_spectral_norm(generator)
    return found


def load_discriminator(checkpoint: Path) -> Discriminator:
    """The discriminator of a checkpoint, in eval mode. Raises UserError as `load_generators` does."""
    verify_checkpoint(checkpoint)
    config, classes, _ = _of_run(checkpoint)
    discriminator = build_discriminator(config, classes)
    state = read_tensors(checkpoint / "discriminator.safetensors")
    load_exactly(discriminator, state, f"{checkpoint}/discriminator")
    return discriminator.eval().requires_grad_(False)


def _of_run(checkpoint: Path) -> tuple[Config, int, tuple[str, ...]]:
    """Config, number of classes and class names of the run that a checkpoint belongs to."""
    run = checkpoint.resolve().parent.parent
    config = load_config(run / "config.yaml")
    about = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    if config.data.num_classes is None:
        raise UserError(f"{run / 'config.yaml'}: data.num_classes is not set, so it is not that of a run")
    if not isinstance(about, dict):
        raise UserError(f"{run / 'run.json'}: not the record of a run; restore it, or remove it")
    return config, config.data.num_classes, tuple(about.get("class_names", ())) if config.data.num_classes else ()

"""The folder of a run: created once, resumed with the same config, locked by one process."""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from sagan.config.load import differences, load_config, make_config, replaced
from sagan.config.schema import Config
from sagan.utils.errors import UserError
from sagan.utils.io import (
    TEMPORARY,
    append_json_line,
    atomic_file,
    check_folder_place,
    make_folder,
    read_json,
    write_json,
)

CONFIG, ABOUT, LOCK = "config.yaml", "run.json", ".lock"
BINDING = ("checkpoints", "snapshots")
STOPPED, ROLLBACKS, ABANDONED, CHANGES = "stopped.json", "rollbacks.jsonl", "abandoned", "changes.jsonl"
OWN = (
    CONFIG, ABOUT, "log.jsonl", "metrics.jsonl", "samples", "tracking", STOPPED, ROLLBACKS, ABANDONED, CHANGES, *BINDING
)  # fmt: skip
HARMLESS = (
    "evaluate.", "data.source", "data.prepared", "data.skip_bad", "data.labels", "data.columns", "training.log_every",
    "training.sample_every", "training.snapshot_every", "training.checkpoint_every", "training.keep_checkpoints",
    "training.samples_per_class", "training.trackers", "training.device", "divergence.",
)  # fmt: skip
CHANGEABLE = (
    "optim.", "loss.", "augment.", "ema.", "training.steps", "training.precision", "training.compile",
    "training.cuda_graphs", "training.activation_checkpointing", "training.tf32", "training.cudnn_benchmark",
)  # fmt: skip
Changes = dict[str, tuple[Any, Any]]  # dotted name -> old and new value


def changed_config(run: Path, config: Config, overrides: Sequence[str]) -> tuple[Config, Changes]:
    """The config with what earlier commands have changed in the run and `overrides` change now; and the latter.

    Raises UserError for a run that has not begun, and for settings that cannot change within a run.
    """
    for change in read_changes(run):  # the command that began the run has the old values
        for name, (old, new) in change["changes"].items():
            if differences(config, _with_value(config, name, old)) == {}:
                config = _with_value(config, name, new)
    if not overrides:
        return config, {}
    if not _is_bound(run):
        raise UserError(f"--change {overrides[0]}: {run} holds no run yet; use --set")
    changed = make_config(config.to_dict(), [*overrides], where="--change")
    changes = differences(config, changed)
    for name in changes:
        if name.startswith(HARMLESS):
            raise UserError(f"--change {name}: changes no result; use --set")
        if not name.startswith(CHANGEABLE):
            raise UserError(
                f"--change {name}: networks, data, seed and batch size cannot change within a run; start another run, "
                "with --init-from to keep the weights"
            )
    return changed, changes


def _with_value(config: Config, name: str, value: Any) -> Config:
    return make_config(config.to_dict(), [f"{name}={json.dumps(value)}"])


class _Change(BaseModel):
    step: int
    changes: Changes


def read_changes(run: Path) -> list[dict[str, Any]]:
    """What `--change` has changed in a run, oldest first: {"step": the step before, "changes": Changes}."""
    path = run / CHANGES
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
        return [_Change.model_validate_json(line).model_dump() for line in lines]
    except ValueError:
        raise UserError(f"{path}: damaged; each line has the step and the values of settings that changed") from None


def open_run(run: Path, config: Config, about: dict[str, Any], changes: Changes | None = None, step: int = 0) -> None:
    """Create the folder of a run with config.yaml and run.json, or check both against what is there.

    `changes`: settings that change after `step`. The caller must hold the lock of the run: files that an interrupted
    process left incomplete are removed.
    """
    bound = check_run(run, config, about, changes or ())
    make_folder(run)
    for folder in (run, *(run / kind for kind in ("samples", *BINDING))):
        for path in folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if not bound:
        write_json(run / ABOUT, about)
    elif config.training.init_from is None:  # resuming does not repeat where the weights came from
        origin = load_config(run / CONFIG).training.init_from
        config = replaced(config, {"training": {"init_from": origin}})
    if changes:
        append_json_line(run / CHANGES, {"step": step, "changes": changes})
    with atomic_file(run / CONFIG) as temporary:
        temporary.write_text(config.to_yaml())


def check_run(run: Path, config: Config, about: dict[str, Any], changing: Collection[str] = ()) -> bool:
    """Return whether the folder holds a run that this config and data would continue; writes nothing.

    `about` must hold `content_hash` of the data; `changing` names settings that may differ. A run is bound to its
    settings from its first checkpoint or snapshot on. Raises UserError for settings that would change results, for
    other data, and for a folder of something else.
    """
    check_folder_place(run)
    if not _is_bound(run):
        others = [p.name for p in _entries(run) if not p.name.startswith(".") and p.name not in OWN]
        if others:
            raise UserError(f"{run}: is not a run and not empty (it holds {min(others)}); name a new folder with --out")
        return False
    check_same_run(run, config, changing)
    found = read_json(run / ABOUT) if (run / ABOUT).is_file() else None
    if not isinstance(found, dict) or "content_hash" not in found:
        raise UserError(f"{run / ABOUT}: missing or damaged, so it is unknown what the run was trained on")
    if found["content_hash"] != about["content_hash"]:
        old, new = str(found["content_hash"])[:12], about["content_hash"][:12]
        raise UserError(f"{run}: was trained on other data (content hash {old}, now {new})")
    return True


def recorded_config(run: Path) -> Config | None:
    """The config that a run is bound to, if it is bound yet."""
    return load_config(run / CONFIG) if _is_bound(run) else None


def _is_bound(run: Path) -> bool:
    return any((run / kind).exists() for kind in BINDING)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def check_same_run(run: Path, config: Config, changing: Collection[str] = ()) -> None:
    """Raise UserError with the differences if `config` would not continue the run."""
    found = load_config(run / CONFIG)
    changed = differences(found, config)
    for change in read_changes(run)[-1:]:  # which a kill may have kept from config.yaml
        changing = [*changing, *(n for n, (_, new) in change["changes"].items() if changed.get(n, [0, 0])[1] == new)]
    if config.optim.decay == "none" and config.training.steps >= found.training.steps:
        changed.pop("training.steps", None)
    if config.training.init_from is None:
        changed.pop("training.init_from", None)
    lines = [
        f"  {name}: {_short(old)} in the run, {_short(new)} now"
        for name, (old, new) in changed.items()
        if not name.startswith(HARMLESS) and name not in changing
    ]
    if len(lines) > 3:
        lines[2:] = [f"  and {len(lines) - 2} more"]
    if lines:
        hint = ", use --change" if all(name.startswith((*CHANGEABLE, *HARMLESS)) for name in changed) else ""
        message = f"{run}: was made with other settings; name a new folder with --out{hint}, or undo:"
        raise UserError("\n".join([message, *lines]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def final_snapshot(run: Path, steps: int) -> Path | None:
    """The snapshot of the last step of a finished run: its checkpoint is there too, or all were removed."""
    name, checkpoints = f"{steps:08d}", run / "checkpoints"
    removed = not any(place.name.isdigit() for place in _entries(checkpoints))
    if (run / "snapshots" / name).is_dir() and (removed or (checkpoints / name).is_dir()):
        return run / "snapshots" / name
    return None


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the folder of a run for this process. Raises UserError if another process holds it.

    Creates the folder if it is missing, and removes it at the end if nothing was written to it.
    """
    made, lock = not run.exists(), FileLock(run / LOCK)
    while not lock.is_locked:
        make_folder(run)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{run}: another process is training in this folder") from None
        except (FileNotFoundError, FileExistsError):  # another process, which wrote nothing, removed the folder
            continue
    try:
        yield
    finally:
        if made and [path.name for path in _entries(run)] == [LOCK]:
            (run / LOCK).unlink()
            with suppress(OSError):  # another process is about to lock it
                run.rmdir()
        lock.release()

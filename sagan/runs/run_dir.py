"""A run's folder: made once, resumed by the same config, refused to another one and to a second process."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sagan.config.load import differences, load_config, replaced
from sagan.config.schema import Config
from sagan.utils.errors import UserError
from sagan.utils.io import TEMPORARY, atomic_file, make_folder, read_json, write_json

CONFIG, ABOUT, LOCK = "config.yaml", "run.json", ".lock"
BINDING = ("checkpoints", "snapshots")
ORIGIN = "training.init_from"
STOPPED, ROLLBACKS, ABANDONED = "stopped.json", "rollbacks.jsonl", "abandoned"
OWN = (
    CONFIG, ABOUT, "log.jsonl", "metrics.jsonl", "samples", "tracking", STOPPED, ROLLBACKS, ABANDONED, *BINDING
)  # fmt: skip
HARMLESS = (
    "evaluate.", "data.source", "data.prepared", "data.skip_bad", "training.log_every", "training.sample_every",
    "training.snapshot_every", "training.checkpoint_every", "training.keep_checkpoints", "training.samples_per_class",
    "training.trackers", "training.device", "divergence.",
)  # fmt: skip


def open_run(run: Path, config: Config, about: dict[str, Any]) -> None:
    """Create a run's folder with its config.yaml and run.json, or check that both agree with what is there.

    The caller holds the run's lock: what a kill left half-written is removed.
    """
    bound = check_run(run, config, about)
    make_folder(run)
    _remove_partial(run)
    if bound:
        config = _with_origin(run, config)
    else:
        write_json(run / ABOUT, about)
    with atomic_file(run / CONFIG) as temporary:
        temporary.write_text(config.to_yaml())


def check_run(run: Path, config: Config, about: dict[str, Any]) -> bool:
    """Whether a run is there that this config and data would continue; writes nothing.

    `about` must hold `content_hash` of the data. A run binds from its first checkpoint or snapshot on: UserError shows
    every difference that would change results; and for a folder that holds something else.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file, a folder was expected")
    nearest = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{run}: cannot be created, its parent is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{run}: no permission to write in {nearest}")
    if not any((run / kind).exists() for kind in BINDING):
        others = [p.name for p in _entries(run) if not p.name.startswith(".") and p.name not in OWN]
        if others:
            raise UserError(f"{run}: is not a run and not empty (it holds {min(others)}); name a new folder with --out")
        return False
    check_same_run(run, config)
    found = read_json(run / ABOUT) if (run / ABOUT).is_file() else None
    if not isinstance(found, dict) or "content_hash" not in found:
        raise UserError(f"{run / ABOUT}: missing or damaged, so it is unknown what the run was trained on")
    if found["content_hash"] != about["content_hash"]:
        old, new = str(found["content_hash"])[:12], about["content_hash"][:12]
        raise UserError(f"{run}: was trained on other data (content hash {old}, now {new})")
    return True


def _entries(run: Path) -> list[Path]:
    return list(run.iterdir()) if run.exists() else []


def check_same_run(run: Path, config: Config) -> None:
    """UserError with the differences when `config` would not continue the run that is in `run`."""
    found = load_config(run / CONFIG)
    changed = differences(found, config)
    harmful = {
        n: pair for n, pair in changed.items()
        if not n.startswith(HARMLESS) and not _only_longer(n, found, config)
        and not (n == ORIGIN and config.training.init_from is None)  # said once, at the first start
    }  # fmt: skip
    if harmful:
        lines = [f"  {name}: {_short(old)} in the run, {_short(new)} now" for name, (old, new) in harmful.items()]
        if len(lines) > 3:
            lines = [*lines[:2], f"  and {len(lines) - 2} more"]
        raise UserError(
            "\n".join([f"{run}: was made with other settings; name a new folder with --out, or undo:", *lines])
        )


def final_snapshot(run: Path, steps: int) -> Path | None:
    """The snapshot of the last step, when the run is finished: its checkpoint is there too, or all were removed."""
    name, checkpoints = f"{steps:08d}", run / "checkpoints"
    if not (run / "snapshots" / name).is_dir():
        return None
    removed = not any(place.name.isdigit() for place in _entries(checkpoints))
    return run / "snapshots" / name if removed or (checkpoints / name).is_dir() else None


def _only_longer(name: str, found: Config, config: Config) -> bool:
    return name == "training.steps" and config.optim.decay == "none" and config.training.steps >= found.training.steps


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _with_origin(run: Path, config: Config) -> Config:
    """The config with the weights that the run began from, where a command that goes on does not repeat them."""
    origin = load_config(run / CONFIG).training.init_from
    return config if config.training.init_from else replaced(config, {"training": {"init_from": origin}})


def _remove_partial(run: Path) -> None:
    for folder in (run, *(run / kind for kind in ("samples", *BINDING))):
        for path in folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the run's folder for this process; UserError when another process holds it.

    The folder is made where it is missing; one that we made and wrote nothing to is removed at the end.
    """
    made = not run.exists()
    descriptor = _lock(run)
    try:
        yield
    finally:
        if made and [path.name for path in _entries(run)] == [LOCK]:
            (run / LOCK).unlink()
            with suppress(OSError):  # another process is about to lock it
                run.rmdir()
        os.close(descriptor)


def _lock(run: Path) -> int:
    """A descriptor of the locked file; the lock goes with it, or with its process, however that ends."""
    while True:
        make_folder(run)
        try:
            descriptor = os.open(run / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # the folder was removed by one that began nothing
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{run}: another process is training in this folder") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(run / LOCK), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)

"""What a run does when it diverges: stop, or return to an earlier checkpoint with other data and lower rates.

Files of the abandoned steps are not overwritten but moved to abandoned/<number of the rollback>/. Everything that
follows is a function of the checkpoint and the number of rollbacks stored in it, so a run that is killed after a
rollback resumes exactly.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from sagan.runs.checkpoint import list_checkpoints, mark_checkpoint, progress_of, verify_checkpoint
from sagan.runs.run_dir import ABANDONED, ROLLBACKS, STOPPED
from sagan.training.divergence import Divergence
from sagan.training.logging import RunLog, truncate_log
from sagan.training.state import Run, load
from sagan.utils.errors import UserError
from sagan.utils.io import append_json_line, make_folder, write_json


def recover(run: Run, log: RunLog, divergence: Divergence) -> None:
    """Return the run to before `divergence`. Every process calls it.

    Where the run must stop instead, writes stopped.json and raises UserError.
    """
    main, settings, number = run.accelerator.is_main_process, run.config.divergence, run.progress.rollbacks + 1
    checkpoint, end = None, ""
    if settings.action == "rollback" and number > settings.times:
        end = f" after {settings.times} rollbacks"
    elif settings.action == "rollback":
        checkpoint = broadcast_object_list([_sound_checkpoint(run, divergence) if main else None])[0]
        end = " and no intact checkpoint is left to return to" if checkpoint is None else ""
    if checkpoint is None:
        if main:
            write_json(run.folder / STOPPED, {**asdict(divergence), "rollbacks": run.progress.rollbacks})
        run.accelerator.wait_for_everyone()
        raise UserError(
            f"{divergence.reason} at step {divergence.step}{end}; stopped, the last checkpoint is from an earlier step "
            f"(see {STOPPED})"
        )
    if main:
        _go_back(run, divergence, checkpoint, number, run.progress.rate * settings.rate)
    run.accelerator.wait_for_everyone()
    load(run, checkpoint)
    assert run.progress.rollbacks == number, "the checkpoint must count this rollback, or rollbacks never end"
    log.restart(run.progress.step)
    log.say(
        f"{divergence.reason} at step {divergence.step}; rolled back to step {run.progress.step} "
        f"({number} of {settings.times} times), learning rates × {run.progress.rate:g}"
    )


def archive_stop(run: Run) -> None:
    """Move the stopped.json of a run that is resumed to abandoned/stopped-<n>.json, n from 1."""
    stopped, place = run.folder / STOPPED, run.folder / ABANDONED
    if run.accelerator.is_main_process and stopped.exists():
        _move(stopped, place / f"stopped-{len(list(place.glob('stopped-*.json'))) + 1}.json")


def _sound_checkpoint(run: Run, divergence: Divergence) -> Path | None:
    """The best intact checkpoint if the run keeps one, else the newest from before the divergence began.

    If pruning has left none of those, the oldest from before it was found.
    """
    return next((folder for folder in _by_preference(run, divergence) if _is_whole(folder)), None)


def _is_whole(folder: Path) -> bool:
    try:
        verify_checkpoint(folder)
    except UserError:
        return False
    return True


def _by_preference(run: Run, divergence: Divergence) -> Iterator[Path]:
    folders = [folder for folder in list_checkpoints(run.folder) if int(folder.name) < divergence.step]
    if run.config.evaluate.best is not None:
        yield from (folder for folder in folders if int(folder.name) == run.progress.best_step)
    yield from (folder for folder in reversed(folders) if int(folder.name) < divergence.since)
    yield from (folder for folder in folders if int(folder.name) >= divergence.since)


def _go_back(run: Run, divergence: Divergence, checkpoint: Path, number: int, rate: float) -> None:
    """Change the run's folder. After a kill anywhere in here, the same command rolls back once more."""
    progress = progress_of(verify_checkpoint(checkpoint))
    append_json_line(
        run.folder / ROLLBACKS, {"number": number, **asdict(divergence), "to": progress.step, "rate": rate}
    )
    mark_checkpoint(checkpoint, replace(progress, rollbacks=number, rate=rate, saturated_since=None))
    place = run.folder / ABANDONED / str(number)
    for name in ("log.jsonl", "metrics.jsonl"):
        truncate_log(run.folder / name, progress.step, place / name)
    for kind in ("samples", "snapshots", "checkpoints"):
        for path in sorted((run.folder / kind).glob(f"{'[0-9]' * 8}*")):
            if int(path.name[:8]) > progress.step:
                _move(path, place / kind / path.name)


def _move(path: Path, to: Path) -> None:
    make_folder(to.parent)
    if to.is_dir():  # left by a kill during the same rollback
        shutil.rmtree(to)
    os.replace(path, to)

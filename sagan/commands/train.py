"""`sagan train`: one config, one folder; the same command again resumes. torch is imported once all is checked."""

import os
import signal
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sagan.config import check_processes, load_config, replaced
from sagan.data.dataset import PreparedData
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.evaluation.choices import check_names
from sagan.rundir import check_run, final_snapshot, lock_run, open_run
from sagan.settings import Config

RECORDED = ("torch", "torchvision", "accelerate", "numpy", "torch-fidelity", "safetensors")


def train_command(config_path: Path, out: Path, overrides: list[str]) -> int:
    """Train to the config's last step, or go on where the run in `out` stands. Returns the exit code.

    UserError for everything that is wrong with config, data, folder or machine, before anything is written to `out`.
    """
    config = load_config(config_path, overrides)
    check_names(config.evaluate.metrics, "evaluate.metrics")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    data = ensure_prepared(config.data, report=to_stderr if rank == 0 else lambda line: None)
    config = resolved(config, data)
    check_processes(config, world)
    about = _about(data)
    check_run(out, config, about)
    with lock_run(out) if rank == 0 else nullcontext():
        check_run(out, config, about)  # again: another process may have begun a run there since
        if final_snapshot(out, config.training.steps) is None:
            return _train(config, out, data, about)
    if rank == 0:
        print(f"{out}: finished, all {config.training.steps} steps are done", file=sys.stderr)
    return 0


def resolved(config: Config, data: PreparedData) -> Config:
    """The config with what the data decides filled in."""
    classes = data.manifest.num_classes if config.data.num_classes is None else config.data.num_classes
    config = replaced(config, {"data": {"num_classes": classes}})
    return replaced(config, {"optim": {"d_steps": config.d_steps}})


def _train(config: Config, out: Path, data: PreparedData, about: dict[str, Any]) -> int:
    from sagan.checkpoint import list_checkpoints
    from sagan.finetune import initialize_from
    from sagan.monitoring import quadratic_warnings
    from sagan.run import build_run, close, make_accelerator, resume, start_trackers
    from sagan.tracking import RunLog, truncate_log
    from sagan.training import train

    accelerator = make_accelerator(config, out)
    run = build_run(out, config, data, accelerator)
    if config.evaluate.every:
        from sagan.evaluating import make_evaluator

        run.evaluate = make_evaluator(config.evaluate, data, config.data.num_classes or 0, accelerator.device)
    said = quadratic_warnings(config, run.gan.generator, run.gan.discriminator, accelerator.num_processes)
    if config.training.init_from is not None and not list_checkpoints(out):
        said.append(initialize_from(run.gan, config.training.init_from))
    said += resume(run)
    main = accelerator.is_main_process
    if main:
        open_run(out, config, about)
        truncate_log(out / "metrics.jsonl", run.progress.step)
    accelerator.wait_for_everyone()
    start, settings = run.progress.step, config.training
    log = RunLog(out, start, settings.steps, settings.batch_size, start_trackers(run), silent=not main)
    try:
        for line in said:
            log.say(line)
        stopped = train(run, log)
    finally:
        log.close()
    close(run)
    if stopped is None and run.progress.step < settings.steps:
        log.say(
            f"stopped early at step {run.progress.step}: {config.evaluate.best} was best at step "
            f"{run.progress.best_step}, {run.progress.stale} evaluations ago; a higher evaluate.patience goes on"
        )
        return 0
    if stopped is None:
        log.say(f"done: {out}/snapshots/{settings.steps:08d}, samples in {out}/samples")
        return 0
    log.say(f"stopped by {signal.Signals(stopped).name} at step {run.progress.step}, saved; the same command goes on")
    return 128 + stopped


def _about(data: PreparedData) -> dict[str, Any]:
    manifest = data.manifest
    return {
        "content_hash": manifest.content_hash,
        "images": manifest.count,
        "class_names": list(manifest.class_names),
        "versions": {name: version(name) for name in RECORDED},
    }

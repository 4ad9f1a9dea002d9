"""The training loop: step, log, show, score, save, until the run is finished, told to stop, or collapsed."""

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from sagan.config.load import check_processes, load_config, replaced
from sagan.config.options import Place
from sagan.config.schema import Config
from sagan.data.dataset import Prefetcher, PreparedData
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.evaluation.registry import check_names
from sagan.inspection.figure import attention_figure
from sagan.inspection.health import has_maps
from sagan.inspection.record import attention_of, salient_points
from sagan.models.generator import Generator
from sagan.runs.checkpoint import prune_checkpoints, save_checkpoint
from sagan.runs.run_dir import check_run, final_snapshot, lock_run, open_run
from sagan.runs.snapshot import save_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.training.divergence import (
    Divergence,
    broken_state,
    broken_values,
    watch_discriminator,
    watch_samples,
    watch_scores,
)
from sagan.training.ema import average_statistics, decay_at, ema_generator, update_ema
from sagan.training.logging import RunLog, attention_warning, measure
from sagan.training.rollback import clear_stop, recover
from sagan.training.state import Run, begin_update, set_rates
from sagan.training.step import discriminator_step, generator_step
from sagan.utils.images import image_grid, save_png
from sagan.utils.system import caught_signals

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
    from sagan.runs.checkpoint import list_checkpoints
    from sagan.training.finetune import initialize_from
    from sagan.training.logging import RunLog, quadratic_warnings, truncate_log
    from sagan.training.state import build_run, close, make_accelerator, resume, start_trackers

    accelerator = make_accelerator(config, out)
    run = build_run(out, config, data, accelerator)
    if config.evaluate.every:
        from sagan.training.evaluator import make_evaluator

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


MOST_ROWS, FIGURE_IMAGES, FIGURE_POINTS = 16, 6, 4


def save_sheets(run: Path, step: int, generator: Generator, per_class: int) -> np.ndarray:
    """samples/<step>.png, one row a class from fixed seeds, and <step>-attention.png where there is attention.

    Returns the samples, uint8 (rows, per_class, R, R, 3).
    """
    rows = min(generator.num_classes, MOST_ROWS) or per_class
    seeds = range(rows * per_class)
    labels = torch.arange(rows).repeat_interleave(per_class) if generator.num_classes else None
    images = samples(generator, seeds, labels)
    save_png(run / "samples" / f"{step:08d}.png", image_grid(images, per_class, scale=_scale(generator.resolution)))
    if has_maps(generator):
        shown = range(FIGURE_IMAGES)
        z, labels = latents(shown, generator.z_dim), default_labels(shown, generator.num_classes)
        recording = attention_of(generator, z, labels, shown, partial(salient_points, k=FIGURE_POINTS))
        save_png(run / "samples" / f"{step:08d}-attention.png", attention_figure(recording))
    return images.reshape(rows, per_class, *images.shape[1:])


def samples(generator: Generator, seeds: range, labels: torch.Tensor | None) -> np.ndarray:
    """Images uint8 (N, H, W, 3) of seeds and labels, on the generator's device."""
    device = next(generator.parameters()).device
    return np.concatenate([b.numpy() for b in generate(generator, latents(seeds, generator.z_dim), labels, device)])


def _scale(resolution: int) -> int:
    return max(1, 64 // resolution)


STEPS_BETWEEN_AGREEMENTS, SECONDS_BETWEEN_AGREEMENTS = 10, 1.0


def train(run: Run, log: RunLog) -> int | None:
    """Train until finished. Returns the number of the signal that ended it early (all saved), or None.

    UserError when divergence ends it.
    """
    clear_stop(run)
    _seal(run)
    with caught_signals() as received:
        while not run.finished:
            ended = _train_on(run, log, received)
            if not isinstance(ended, Divergence):
                return ended
            recover(run, log, ended)
    return None


def _train_on(run: Run, log: RunLog, received: list[int]) -> Divergence | int | None:
    """Train from the run's step until finished (None), a signal or a divergence."""
    settings, start = run.config.training, run.progress.step
    d_steps = run.config.d_steps
    fetch, agreement = run.batches.fetch(run.data), _Agreement(run, received)
    with Prefetcher(fetch, start * d_steps, settings.steps * d_steps) as reader:
        while not run.finished:
            step = run.progress.step
            set_rates(run)
            values, reals = {}, []
            for update in range(step * d_steps, (step + 1) * d_steps):
                reals = run.batches.reals(update, next(reader))
                latents = run.batches.latents("discriminator", update)
                batches = list(zip(reals, latents, strict=True))
                if settings.cuda_graphs:
                    begin_update()
                values |= discriminator_step(run.gan, run.objective, batches, run.accelerator)
            latents = run.batches.latents("generator", step)
            values |= generator_step(run.gan, run.objective, latents, run.accelerator, reals)
            decay = decay_at(run.config.ema, step + 1, settings.batch_size)
            update_ema(run.gan.ema, run.gan.generator, decay)
            run.progress = replace(run.progress, step=step + 1)
            stop = agreement.reached(step + 1)
            divergence = _after_step(run, log, values, stopping=stop is not None)
            if divergence is not None or stop is not None:
                return divergence or stop
    return None


def _after_step(run: Run, log: RunLog, values: dict[str, torch.Tensor], stopping: bool) -> Divergence | None:
    """Look, log, show, save what is due; after a divergence nothing more is written."""
    step, settings = run.progress.step, run.config.training
    log.advance(step)
    last = run.finished
    due = {
        name: last or (every > 0 and step % every == 0)
        for name, every in (
            ("log", settings.log_every),
            ("checkpoint", settings.checkpoint_every),
            ("sheet", settings.sample_every),
            ("snapshot", settings.snapshot_every),
            ("scores", run.config.evaluate.every),
        )
    }
    divergence, average = None, None
    if stopping or any(due.values()):
        values = _averaged_over_processes(run, values)
        written = stopping or any(due[name] for name in due if name != "log")
        divergence = broken_values(step, values) or (broken_state(step, run.gan) if written else None)
        divergence = _first_of_all(run, divergence)
    if divergence is None and due["log"]:
        divergence = _first_of_all(run, _log(run, log, values))
    if divergence is None and (due["sheet"] or due["snapshot"] or due["scores"]):
        divergence, average = _show(run, log, due)
    if divergence is not None:
        return divergence
    best = run.progress.best_step == step
    shown = average if due["snapshot"] or run.finished or best else None
    if shown is not None and not run.finished:
        _save_snapshot(run, shown)
    if due["checkpoint"] or stopping or run.finished or best:
        save(run)
    if shown is not None and run.finished:  # last: it says that the run is finished
        _save_snapshot(run, shown)
    return None


def _log(run: Run, log: RunLog, values: dict[str, torch.Tensor]) -> Divergence | None:
    """One line of the log, if gradients and weights are finite; then a look at the discriminator."""
    step, settings = run.progress.step, run.config.training
    measured = measure(run.gan, values, run.batches.latents("generator", step)[0])
    judged = ("_gamma/", "_sigma/") if settings.precision == "fp16" else ("_gradient_norm", "_gamma/", "_sigma/")
    # (in fp16 the scaler meets gradients that overflow by design, and leaves those updates out)
    if divergence := broken_values(step, {n: v for n, v in measured.items() if any(part in n for part in judged)}):
        return divergence
    log.record(step, measured)
    if warning := attention_warning(step, settings, measured):
        log.say(warning)
    if step % settings.log_every:  # the last step: a longer run would not look here
        return None
    run.progress, divergence = watch_discriminator(run.config, run.progress, values)
    return divergence


def _show(run: Run, log: RunLog, due: dict[str, bool]) -> tuple[Divergence | None, Generator]:
    """Scores of the averaged generator, which may end the run, and its sheet; what they betray, and the generator."""
    before, step, main = run.progress, run.progress.step, run.accelerator.is_main_process
    average, divergence = ema_generator(run.gan.ema), None
    if run.evaluate is not None and due["scores"]:
        run.progress, scores = run.evaluate(run.folder, run.progress, average, log.say)
        run.progress, divergence = watch_scores(run.config.divergence, run.progress, scores)
    if main and (due["sheet"] or run.finished):
        images = save_sheets(run.folder, step, average, run.config.training.samples_per_class)
        divergence = divergence or watch_samples(run.config.divergence, step, images)
    run.progress, divergence = broadcast_object_list([run.progress, divergence])  # all must agree on what is the best
    if divergence is not None:
        run.progress = before
    return divergence, average


def _save_snapshot(run: Run, average: Generator) -> None:
    if run.accelerator.is_main_process:
        save_snapshot(average, run.folder / "snapshots" / f"{run.progress.step:08d}")


def _seal(run: Run) -> None:
    """The last snapshot of a run that was killed between its last checkpoint and that; every process calls it."""
    if run.finished:
        average = ema_generator(run.gan.ema)
        if not (run.folder / "snapshots" / f"{run.progress.step:08d}").is_dir():
            _save_snapshot(run, average)


def save(run: Run) -> None:
    """Write the checkpoint of this step and prune the older ones; every process calls it."""
    average_statistics(run.gan.generator)
    average_statistics(run.gan.ema)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        state, processes = None if scaler is None else scaler.state_dict(), run.accelerator.num_processes
        progress = replace(run.progress, scaler=state, processes=processes)
        save_checkpoint(run.folder / "checkpoints" / f"{progress.step:08d}", run.gan, progress)
        prune_checkpoints(run.folder, run.config.training.keep_checkpoints, progress)
    run.accelerator.wait_for_everyone()


def _first_of_all(run: Run, divergence: Divergence | None) -> Divergence | None:
    """What any process found: all must part from the loop after the same step."""
    return (
        divergence if _alone(run) else next((found for found in gather_object([divergence]) if found is not None), None)
    )


def _averaged_over_processes(run: Run, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    reduced: Any = run.accelerator.reduce(torch.stack(list(values.values())), "mean")
    return dict(zip(values, reduced, strict=True))


def _alone(run: Run) -> bool:
    return run.accelerator.num_processes == 1


class _Agreement:
    """The signal that any process received: all must leave after the same step.

    Asking makes a GPU wait, so several processes ask after about a second, and after 10 steps at the latest: a launcher
    that told them to stop kills them half a minute later.
    """

    def __init__(self, run: Run, received: list[int]) -> None:
        self.run, self.received = run, received
        self.asked, self.since, self.next = run.progress.step, time.monotonic(), run.progress.step + 1

    def reached(self, step: int) -> int | None:
        """The signal, if the processes know of one when `step` is done."""
        number = self.received[0] if self.received else 0
        if _alone(self.run):
            return number or None
        if step < self.next:
            return None
        pace = (time.monotonic() - self.since) / (step - self.asked)
        found = torch.tensor([number, pace], device=self.run.accelerator.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        number, pace = found.tolist()
        self.asked, self.since, self.next = step, time.monotonic(), step + steps_to_agreement(pace)
        return int(number) or None


def steps_to_agreement(pace: float) -> int:
    """After how many steps, of `pace` seconds each, the processes agree again."""
    return max(1, min(STEPS_BETWEEN_AGREEMENTS, int(SECONDS_BETWEEN_AGREEMENTS / max(pace, 1e-3))))


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=Place(), help="Folder of the run; the same command again resumes.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting (repeatable).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Short for --set training.device=…")
@click.option("--init-from", type=Place(), metavar="SNAPSHOT|RUN", help="Start from these weights (fine-tuning).")
@click.option("--dry-run", is_flag=True, help="Show settings, layers and attention, then stop.")
def train_cli(config: Path, out: Path | None, overrides: tuple[str, ...], device: str | None, init_from: Path | None,
          dry_run: bool) -> int:  # fmt: skip
    """Train as CONFIG (a YAML file) says; also under `accelerate launch train.py` and torchrun."""
    changes = [*overrides]
    if device is not None:
        changes.append(f"training.device={device}")
    if init_from is not None:  # as a string of YAML: a folder may be called 3
        changes.append(f"training.init_from={json.dumps(str(init_from), ensure_ascii=False)}")
    if dry_run:
        from sagan.training.summary import describe_command

        return describe_command(config, changes)
    if out is None:
        raise click.UsageError("Missing option '--out': the folder of the run.")
    return train_command(config, out, changes)

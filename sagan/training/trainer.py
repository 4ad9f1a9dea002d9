"""`sagan train`: the command, and the loop that updates, logs, samples, evaluates and saves."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from sagan.data.prepare import ensure_prepared
from sagan.evaluation.registry import check_names
from sagan.inspection.figure import attention_figure
from sagan.inspection.health import has_maps
from sagan.inspection.record import attention_of, salient_points
from sagan.models.generator import Generator
from sagan.runs.checkpoint import list_checkpoints, prune_checkpoints, save_checkpoint
from sagan.runs.run_dir import Changes, changed_config, check_run, final_snapshot, lock_run, open_run, recorded_config
from sagan.runs.snapshot import save_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.training import divergence
from sagan.training.batches import Inputs
from sagan.training.divergence import Divergence
from sagan.training.ema import average_statistics, decay_at, ema_generator, update_ema
from sagan.training.finetune import initialize_from
from sagan.training.graphs import UpdateGraphs
from sagan.training.logging import RunLog, attention_warning, measure, quadratic_warnings, truncate_log
from sagan.training.rollback import archive_stop, recover
from sagan.training.state import (
    Run,
    Trackers,
    begin_update,
    build_run,
    close,
    launcher_conflicts,
    make_accelerator,
    own_settings,
    resolve_precision,
    resume,
    set_rates,
)
from sagan.training.step import LatentBatch, RealBatch, discriminator_step, generator_step
from sagan.utils.errors import Interrupted, UserError
from sagan.utils.images import image_grid, save_png
from sagan.utils.progress import say
from sagan.utils.system import SIGNALS, caught_signals

RECORDED_VERSIONS = ("torch", "torchvision", "accelerate", "numpy", "torch-fidelity", "safetensors")


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=Place(), help="Folder of the run; run the same command again to resume.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting (repeatable).")
@click.option(
    "--change",
    "changes",
    multiple=True,
    metavar="A.B=VALUE",
    help="Change one setting of a run that is resumed, from its next step on (repeatable).",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Short for --set training.device=…")
@click.option("--init-from", type=Place(), metavar="SNAPSHOT|RUN", help="Start from these weights (fine-tuning).")
@click.option("--dry-run", is_flag=True, help="Show settings, layers and attention, then stop.")
def train_cli(config: Path, out: Path | None, overrides: tuple[str, ...], changes: tuple[str, ...], device: str | None,
          init_from: Path | None, dry_run: bool) -> int:  # fmt: skip
    """Train as CONFIG (a YAML file) says; also under `accelerate launch train.py` and torchrun."""
    settings = [*overrides]
    if device is not None:
        settings.append(f"training.device={device}")
    if init_from is not None:  # as a YAML string: a folder may be called 3
        settings.append(f"training.init_from={json.dumps(str(init_from), ensure_ascii=False)}")
    if dry_run:
        from sagan.training.summary import describe_command

        return describe_command(config, settings)
    if out is None:
        raise click.UsageError("Missing option '--out': the folder of the run.")
    stopped = start(load_config(config, settings), out, changes)
    return 0 if stopped is None else 128 + stopped


def start(
    config: Config, out: Path, changed: Sequence[str] = (), watched: Sequence[signal.Signals] = SIGNALS,
    show: Callable[[], None] | None = None,
) -> int | None:  # fmt: skip
    """Start or resume the run in `out` and train to the config's last step. Returns the signal that ended it early.

    `changed`: overrides that hold from the next step of the run on. `watched`: signals that save and end the run;
    `show`: see `RunLog`. Raises UserError for any mistake in config, data, folder or machine before it writes anything
    to `out`.
    """
    check_names(config.evaluate.metrics, "evaluate.metrics")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    data = ensure_prepared(config.data, report=say if rank == 0 else lambda line: None)
    config = resolved(config, data)
    config, changes = changed_config(out, config, changed)
    check_processes(config, world)
    about = {
        "content_hash": data.manifest.content_hash,
        "images": data.manifest.count,
        "class_names": list(data.manifest.class_names),
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
    }
    config, message = resolve_precision(config, recorded_config(out))
    messages = [*([message] if message else []), *launcher_conflicts(config)]
    check_run(out, config, about, changes)
    with lock_run(out) if rank == 0 else nullcontext():
        check_run(out, config, about, changes)  # again: another process may have started a run there in the meantime
        if final_snapshot(out, config.training.steps) is None:
            with own_settings(config):
                return _train_run(config, out, data, about, changes, messages, watched, show)
    if rank == 0:
        say(f"{out}: finished, all {config.training.steps} steps are done")
    return None


def resolved(config: Config, data: PreparedData) -> Config:
    """The config with the settings that depend on the data filled in. UserError for another number of channels."""
    if data.manifest.channels != config.data.channels:
        raise UserError(
            f"{config.data.source}: prepared with --channels {data.manifest.channels}, but data.channels is "
            f"{config.data.channels}"
        )
    classes = data.manifest.num_classes if config.data.num_classes is None else config.data.num_classes
    config = replaced(config, {"data": {"num_classes": classes}})
    return replaced(config, {"optim": {"d_steps": config.d_steps}})


def _train_run(
    config: Config, out: Path, data: PreparedData, about: dict[str, Any], changes: Changes, messages: list[str],
    watched: Sequence[signal.Signals], show: Callable[[], None] | None,
) -> int | None:  # fmt: skip
    """Build or resume the run, train it, and report how it ended. Returns the signal that ended it early.

    `changes`: of the config against the steps so far; `messages`: for the user, to be shown first.
    """
    accelerator, settings = make_accelerator(config, out), config.training
    run = build_run(out, config, data, accelerator)
    if config.evaluate.every:
        from sagan.training.evaluator import make_evaluator

        run.evaluate = make_evaluator(config.evaluate, data, config.data.num_classes or 0, accelerator.device)
    messages += quadratic_warnings(config, run.gan.generator, run.gan.discriminator, accelerator.num_processes)
    if settings.init_from is not None and not list_checkpoints(out):
        messages.append(initialize_from(run.gan, settings.init_from))
    messages += resume(run)
    messages += [f"from step {run.progress.step + 1} on, {n} is {new} (was {old})" for n, (old, new) in changes.items()]
    main = accelerator.is_main_process
    if main:
        open_run(out, config, about, changes, run.progress.step)
        truncate_log(out / "metrics.jsonl", run.progress.step - run.progress.unscored)
    accelerator.wait_for_everyone()
    trackers, place = Trackers(run), (out, run.progress.step, settings.steps, settings.batch_size)
    log = RunLog(*place, trackers.values, silent=not main, track_picture=trackers.picture, show=show)
    try:
        for message in messages:
            log.say(message)
        with _named_operation():
            stopped = train(run, log, watched)
    finally:
        log.close()
    close(run)
    step = run.progress.step
    if stopped is not None:
        name = signal.Signals(stopped).name
        log.say(f"stopped by {name} at step {step} and saved; run the same command again to resume")
    elif step < settings.steps:
        log.say(
            f"stopped early at step {step}: {config.evaluate.best} was best at step {run.progress.best_step}, "
            f"{run.progress.stale} evaluations ago; raise evaluate.patience to continue"
        )
    else:
        log.say(f"done: {out}/snapshots/{settings.steps:08d}, samples in {out}/samples")
    return stopped


@contextmanager
def _named_operation() -> Iterator[None]:
    """Make torch's error for an operation without a deterministic form a UserError."""
    try:
        yield
    except RuntimeError as error:
        if found := re.match(r"(\w+) does not have a deterministic implementation", str(error)):
            raise UserError(
                f"deterministic: {found[1]} has no deterministic form on this device; set deterministic: false, or "
                "leave out the mechanism that needs it"
            ) from None
        raise


def train(run: Run, log: RunLog, watched: Sequence[signal.Signals] = SIGNALS) -> int | None:
    """Train until the run is finished. Returns None, or the `watched` signal that ended it early (all is saved).

    Raises UserError when the run diverges and may not roll back.
    """
    archive_stop(run)
    _complete(run)
    with caught_signals(watched) as received:
        while run.progress.unscored or not run.finished:
            ended = _train_until(run, log, _Agreement(run, received))
            if not isinstance(ended, Divergence):
                return ended
            recover(run, log, ended)
    return None


def _train_until(run: Run, log: RunLog, agreement: "_Agreement") -> Divergence | int | None:
    """Train on until the run is finished (None), a process receives a signal, or the run diverges."""
    try:
        if run.progress.unscored:
            run.progress = replace(run.progress, unscored=False)
            if diverged := _score_and_save(run, log, _due(run) | {"checkpoint": True}, agreement):
                return diverged
        return None if run.finished else _steps(run, log, agreement)
    except Interrupted:
        run.progress = replace(run.progress, unscored=True)
        save(run)
        return agreement.number


def _steps(run: Run, log: RunLog, agreement: "_Agreement") -> Divergence | int | None:
    settings, start, d_steps = run.config.training, run.progress.step, run.config.d_steps
    prepare = run.batches.ahead(run.data, d_steps)
    updates = UpdateGraphs(run.gan) if run.rates is not None else None
    with Prefetcher(prepare, start * d_steps, settings.steps * d_steps) as reader:
        while not run.finished:
            step = run.progress.step
            set_rates(run)
            values, inputs = {}, Inputs([], [], [])
            for update in range(step * d_steps, (step + 1) * d_steps):
                inputs = next(reader)()
                if settings.cuda_graphs and settings.compile:
                    begin_update()
                values |= _update_discriminator(run, updates, update, inputs.reals, inputs.latents)
            values |= _update_generator(run, updates, inputs.generator, inputs.reals)
            decay = decay_at(run.config.ema, step + 1, settings.batch_size)
            update_ema(run.gan.ema, run.gan.generator, decay)
            run.progress = replace(run.progress, step=step + 1)
            agreement.reached(step + 1)
            diverged = _after_step(run, log, values, agreement)
            if diverged is not None or agreement.number is not None:
                return diverged or agreement.number
    return None


def _update_discriminator(
    run: Run, graphs: UpdateGraphs | None, update: int, reals: list[RealBatch], latents: list[LatentBatch]
) -> dict[str, torch.Tensor]:
    def step(reals: list[RealBatch], latents: list[LatentBatch]) -> dict[str, torch.Tensor]:
        batches = list(zip(reals, latents, strict=True))
        return discriminator_step(run.gan, run.objective, batches, run.accelerator, update)

    if graphs is None:
        return step(reals, latents)
    active = tuple(update % penalty.every == 0 for penalty in run.objective.penalties)
    return graphs.run(run.gan.discriminator, ("discriminator", active), step, reals, latents)


def _update_generator(
    run: Run, graphs: UpdateGraphs | None, latents: list[LatentBatch], reals: list[RealBatch]
) -> dict[str, torch.Tensor]:
    def step(reals: list[RealBatch], latents: list[LatentBatch]) -> dict[str, torch.Tensor]:
        return generator_step(run.gan, run.objective, latents, run.accelerator, reals)

    if graphs is None:
        return step(reals, latents)
    return graphs.run(run.gan.generator, "generator", step, reals, latents)


def _due(run: Run) -> dict[str, bool]:
    """What is to be done after this step."""
    settings, step = run.config.training, run.progress.step
    return {
        name: run.finished or (every > 0 and step % every == 0)
        for name, every in (
            ("log", settings.log_every),
            ("checkpoint", settings.checkpoint_every),
            ("samples", settings.sample_every),
            ("snapshot", settings.snapshot_every),
            ("scores", run.config.evaluate.every),
        )
    }


def _after_step(
    run: Run, log: RunLog, values: dict[str, torch.Tensor], agreement: "_Agreement"
) -> Divergence | None:  # fmt: skip
    """Log, sample, evaluate and save what is due after a step. Once the run has diverged nothing more is written."""
    step, stopping, due = run.progress.step, agreement.number is not None, _due(run)
    log.advance(step)
    diverged = None
    if stopping or any(due.values()):
        values = _mean_over_processes(run, values)
        diverged = divergence.in_values(step, values)
        if diverged is None and (stopping or any(due[name] for name in due if name != "log")):
            diverged = divergence.in_state(step, run.gan)
        diverged = _first_found(run, diverged)
    if diverged is None and due["log"]:
        diverged = _first_found(run, _log(run, log, values))
    return diverged or _score_and_save(run, log, due, agreement)


def _score_and_save(run: Run, log: RunLog, due: dict[str, bool], agreement: "_Agreement") -> Divergence | None:
    step, ema = run.progress.step, None
    if due["samples"] or due["snapshot"] or due["scores"]:
        diverged, ema = _evaluate(run, log, due, agreement)
        if diverged is not None:
            return diverged
    best = run.progress.best_step == step
    snapshot = ema if due["snapshot"] or run.finished or best else None
    if snapshot is not None and not run.finished:
        _save_snapshot(run, snapshot)
    if due["checkpoint"] or agreement.number is not None or run.finished or best:
        save(run)
    if snapshot is not None and run.finished:  # last: it marks the run as finished
        _save_snapshot(run, snapshot)
    return None


def _log(run: Run, log: RunLog, values: dict[str, torch.Tensor]) -> Divergence | None:
    """Write one line of the log if gradients and weights are finite, then check the discriminator for saturation."""
    step, settings = run.progress.step, run.config.training
    measured = measure(run.gan, values, run.batches.latents("generator", step)[0])
    checked = ("_gamma/", "_sigma/")
    if settings.precision != "fp16":  # in fp16 gradients overflow by design; the scaler skips those updates
        checked += ("_gradient_norm",)
    finite = {name: value for name, value in measured.items() if any(part in name for part in checked)}
    if diverged := divergence.in_values(step, finite):
        return diverged
    log.record(step, measured)
    if warning := attention_warning(step, settings, measured):
        log.say(warning)
    if step % settings.log_every:  # the last step, where a longer run would not log
        return None
    run.progress, diverged = divergence.in_discriminator(run.config, run.progress, values)
    return diverged


def _evaluate(
    run: Run, log: RunLog, due: dict[str, bool], agreement: "_Agreement"
) -> tuple[Divergence | None, Generator]:
    """Score and sample the averaged generator where due. Returns the divergence found, if any, and the generator."""
    before, step, main = run.progress, run.progress.step, run.accelerator.is_main_process
    ema, diverged = ema_generator(run.gan.ema), None
    if run.evaluate is not None and due["scores"]:
        run.progress, scores = run.evaluate(run.folder, run.progress, ema, log.say, agreement.stop)
        log.scores(step, scores)
        run.progress, diverged = divergence.in_scores(run.config.divergence, run.progress, scores)
    if main and (due["samples"] or run.finished):
        images = save_samples(run.folder, step, ema, run.config.training.samples_per_class)
        log.samples(step)
        diverged = diverged or divergence.in_samples(run.config.divergence, step, images)
    run.progress, diverged = broadcast_object_list([run.progress, diverged])  # all processes agree on the best
    if diverged is not None:
        run.progress = before
    return diverged, ema


MAX_ROWS, FIGURE_IMAGES, FIGURE_POINTS = 16, 6, 4


def save_samples(run: Path, step: int, generator: Generator, per_class: int) -> np.ndarray:
    """Write samples/<step>.png, one row per class from fixed seeds, and <step>-attention.png if there is attention.

    Returns the samples, uint8 (rows, per_class, R, R, 3).
    """
    rows = min(generator.num_classes, MAX_ROWS) or per_class
    labels = torch.arange(rows).repeat_interleave(per_class) if generator.num_classes else None
    device, z = next(generator.parameters()).device, latents(range(rows * per_class), generator.z_dim)
    images = np.concatenate([batch.numpy() for batch in generate(generator, z, labels, device)])
    scale = max(1, 64 // generator.resolution)
    save_png(run / "samples" / f"{step:08d}.png", image_grid(images, per_class, scale=scale))
    if has_maps(generator):
        seeds = range(FIGURE_IMAGES)
        z, labels = latents(seeds, generator.z_dim), default_labels(seeds, generator.num_classes)
        recording = attention_of(generator, z, labels, seeds, partial(salient_points, k=FIGURE_POINTS))
        save_png(run / "samples" / f"{step:08d}-attention.png", attention_figure(recording))
    return images.reshape(rows, per_class, *images.shape[1:])


def save(run: Run) -> None:
    """Write the checkpoint of this step and prune older ones. Every process calls it."""
    average_statistics(run.gan.generator)
    average_statistics(run.gan.ema)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        state, processes = None if scaler is None else scaler.state_dict(), run.accelerator.num_processes
        progress = replace(run.progress, scaler=state, processes=processes)
        save_checkpoint(run.folder / "checkpoints" / f"{progress.step:08d}", run.gan, progress)
        prune_checkpoints(run.folder, run.config.training.keep_checkpoints, progress)
    run.accelerator.wait_for_everyone()


def _save_snapshot(run: Run, ema: Generator) -> None:
    if run.accelerator.is_main_process:
        save_snapshot(ema, run.folder / "snapshots" / f"{run.progress.step:08d}")


def _complete(run: Run) -> None:
    """Write the last snapshot of a run killed between its last checkpoint and that. Every process calls it."""
    if run.finished and not run.progress.unscored:
        ema = ema_generator(run.gan.ema)
        if not (run.folder / "snapshots" / f"{run.progress.step:08d}").is_dir():
            _save_snapshot(run, ema)


def _first_found(run: Run, diverged: Divergence | None) -> Divergence | None:
    """The first process's finding: all processes must leave the loop after the same step."""
    if run.accelerator.num_processes == 1:
        return diverged
    return next((found for found in gather_object([diverged]) if found is not None), None)


def _mean_over_processes(run: Run, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    reduced: Any = run.accelerator.reduce(torch.stack(list(values.values())), "mean")
    return dict(zip(values, reduced, strict=True))


STEPS_BETWEEN_AGREEMENTS, SECONDS_BETWEEN_AGREEMENTS = 10, 1.0


class _Agreement:
    """Makes all processes leave after the same step when one of them has received a signal.

    Asking the others stalls a GPU, so processes ask about once a second, and at least every 10 steps: launchers kill
    their processes half a minute after telling them to stop.
    """

    def __init__(self, run: Run, received: list[int]) -> None:
        self.run, self.received = run, received
        self.number: int | None = None
        self.asked, self.since, self.next = run.progress.step, time.monotonic(), run.progress.step + 1

    def reached(self, step: int) -> None:
        """Agree, if it is time to, on the signal `number` once `step` is done."""
        several = self.run.accelerator.num_processes > 1
        if several and step < self.next:
            return
        pace = self._agree((time.monotonic() - self.since) / (step - self.asked) if several else 0)
        self.asked, self.since, self.next = step, time.monotonic(), step + steps_to_agreement(pace)

    def stop(self) -> bool:
        """Agree now. Every process calls it. Returns whether there is a signal."""
        self._agree(0)
        return self.number is not None

    def _agree(self, pace: float) -> float:
        """Set `number` to a signal that any process has received. Returns the greatest pace."""
        number: float = self.received[0] if self.received else 0
        if self.run.accelerator.num_processes > 1:
            found = torch.tensor([number, pace], device=self.run.accelerator.device)
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
            number, pace = found.tolist()
        self.number = int(number) or None
        return pace


def steps_to_agreement(pace: float) -> int:
    """Number of steps, of `pace` seconds each, until the processes ask each other again."""
    return max(1, min(STEPS_BETWEEN_AGREEMENTS, int(SECONDS_BETWEEN_AGREEMENTS / max(pace, 1e-3))))

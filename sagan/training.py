"""The training loop: step, log, show, score, save, until the run is finished, told to stop, or collapsed."""

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from sagan.adversarial import discriminator_step, generator_step
from sagan.checkpoint import prune_checkpoints, save_checkpoint
from sagan.data.prefetch import Prefetcher
from sagan.ema import average_statistics, averaged_generator, decay_at, update_average
from sagan.monitoring import attention_warning, measure
from sagan.rollback import clear_stop, recover
from sagan.run import Run, set_rates
from sagan.sentinel import Trouble, broken_state, broken_values, watch_discriminator, watch_samples, watch_scores
from sagan.showing import save_sheets
from sagan.signals import caught_signals
from sagan.snapshot import save_snapshot
from sagan.tracking import RunLog

STEPS_BETWEEN_AGREEMENTS = 10


def train(run: Run, log: RunLog) -> int | None:
    """Train until finished. Returns the number of the signal that ended it early (all saved), or None.

    UserError when the sentinel ends it.
    """
    clear_stop(run)
    with caught_signals() as received:
        while not run.finished:
            ended = _train_on(run, log, received)
            if not isinstance(ended, Trouble):
                return ended
            recover(run, log, ended)
    return None


def _train_on(run: Run, log: RunLog, received: list[int]) -> Trouble | int | None:
    """Train from the run's step until finished (None), a signal or a trouble."""
    settings, start = run.config.training, run.progress.step
    d_steps = run.config.d_steps
    fetch = run.batches.fetch(run.data)
    with Prefetcher(fetch, start * d_steps, settings.steps * d_steps) as reader:
        while not run.finished:
            step = run.progress.step
            set_rates(run)
            values = {}
            for update in range(step * d_steps, (step + 1) * d_steps):
                reals = run.batches.reals(update, next(reader))
                draws = run.batches.draws("discriminator", update)
                batches = list(zip(reals, draws, strict=True))
                values |= discriminator_step(run.gan, run.objective, batches, run.accelerator)
            values |= generator_step(run.gan, run.objective, run.batches.draws("generator", step), run.accelerator)
            decay = decay_at(run.config.ema, step + 1, settings.batch_size)
            update_average(run.gan.average, run.gan.generator, decay)
            run.progress = replace(run.progress, step=step + 1)
            stop = _agreed(run, received) if (step + 1) % STEPS_BETWEEN_AGREEMENTS == 0 or _alone(run) else None
            trouble = _after_step(run, log, values, stopping=stop is not None)
            if trouble is not None or stop is not None:
                return trouble or stop
    return None


def _after_step(run: Run, log: RunLog, values: dict[str, torch.Tensor], stopping: bool) -> Trouble | None:
    """Look, log, show, save what is due; after a trouble nothing more is written."""
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
    trouble = None
    if stopping or any(due.values()):
        values = _averaged_over_processes(run, values)
        written = stopping or any(due[name] for name in due if name != "log")
        trouble = broken_values(step, values) or (broken_state(step, run.gan) if written else None)
        trouble = _first_of_all(run, trouble)
    if trouble is None and due["log"]:
        trouble = _first_of_all(run, _log(run, log, values))
    if trouble is None and (due["sheet"] or due["snapshot"] or due["scores"]):
        trouble = _show(run, log, due)
    if trouble is None and (due["checkpoint"] or stopping or run.finished or run.progress.best_step == step):
        save(run)
    return trouble


def _log(run: Run, log: RunLog, values: dict[str, torch.Tensor]) -> Trouble | None:
    """One line of the log, if gradients and weights are finite; then a look at the discriminator."""
    step, settings = run.progress.step, run.config.training
    measured = measure(run.gan, values, run.batches.draws("generator", step)[0])
    judged = ("_gamma/", "_sigma/") if settings.precision == "fp16" else ("_gradient_norm", "_gamma/", "_sigma/")
    # (in fp16 the scaler meets gradients that overflow by design, and leaves those updates out)
    if trouble := broken_values(step, {n: v for n, v in measured.items() if any(part in n for part in judged)}):
        return trouble
    log.record(step, measured)
    if warning := attention_warning(step, settings, measured):
        log.say(warning)
    if step % settings.log_every:  # the last step: a longer run would not look here
        return None
    run.progress, trouble = watch_discriminator(run.config, run.progress, values)
    return trouble


def _show(run: Run, log: RunLog, due: dict[str, bool]) -> Trouble | None:
    """Scores of the averaged generator, which may end the run, then its sheet and, unless both betray it, snapshot."""
    before, step, main = run.progress, run.progress.step, run.accelerator.is_main_process
    average, trouble = averaged_generator(run.gan.average), None
    if run.evaluate is not None and due["scores"]:
        run.progress, scores = run.evaluate(run.folder, run.progress, average, log.say)
        run.progress, trouble = watch_scores(run.config.sentinel, run.progress, scores)
    if main and (due["sheet"] or run.finished):
        images = save_sheets(run.folder, step, average, run.config.training.samples_per_class)
        trouble = trouble or watch_samples(run.config.sentinel, step, images)
    run.progress, trouble = broadcast_object_list([run.progress, trouble])  # all must agree on what is the best
    if trouble is not None:
        run.progress = before
    elif main and (due["snapshot"] or run.finished or run.progress.best_step == step):
        save_snapshot(average, run.folder / "snapshots" / f"{step:08d}")
    return trouble


def save(run: Run) -> None:
    """Write the checkpoint of this step and prune the older ones; every process calls it."""
    average_statistics(run.gan.generator)
    average_statistics(run.gan.average)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        progress = replace(run.progress, scaler=None if scaler is None else scaler.state_dict())
        save_checkpoint(run.folder / "checkpoints" / f"{progress.step:08d}", run.gan, progress)
        prune_checkpoints(run.folder, run.config.training.keep_checkpoints, progress)
    run.accelerator.wait_for_everyone()


def _first_of_all(run: Run, trouble: Trouble | None) -> Trouble | None:
    """What any process found: all must part from the loop after the same step."""
    return trouble if _alone(run) else next((found for found in gather_object([trouble]) if found is not None), None)


def _averaged_over_processes(run: Run, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    reduced: Any = run.accelerator.reduce(torch.stack(list(values.values())), "mean")
    return dict(zip(values, reduced, strict=True))


def _alone(run: Run) -> bool:
    return run.accelerator.num_processes == 1


def _agreed(run: Run, received: list[int]) -> int | None:
    """The signal that any process received: all must leave after the same step."""
    number = received[0] if received else None
    if _alone(run):
        return number  # reading a tensor here would make a GPU wait in every step
    largest = torch.tensor(number or 0, device=run.accelerator.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest) or None

"""The training loop: step, log, show, score, save, until the run is finished or told to stop."""

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from sagan.adversarial import discriminator_step, generator_step
from sagan.checkpoint import prune_checkpoints, save_checkpoint
from sagan.data.prefetch import Prefetcher
from sagan.ema import average_statistics, averaged_generator, decay_at, update_average
from sagan.errors import UserError
from sagan.monitoring import attention_warning, measure
from sagan.run import Run
from sagan.showing import save_sheets
from sagan.signals import caught_signals
from sagan.snapshot import save_snapshot
from sagan.tracking import RunLog

STEPS_BETWEEN_AGREEMENTS = 10


def train(run: Run, log: RunLog) -> int | None:
    """Train until finished. Returns the number of the signal that ended it early (all saved), or None."""
    settings, start = run.config.training, run.progress.step
    d_steps = run.config.d_steps
    fetch = run.batches.fetch(run.data)
    with caught_signals() as received, Prefetcher(fetch, start * d_steps, settings.steps * d_steps) as reader:
        while not run.finished:
            step = run.progress.step
            _set_rates(run, step)
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
            _after_step(run, log, values, stopping=stop is not None)
            if stop is not None:
                return stop
    return None


def _after_step(run: Run, log: RunLog, values: dict[str, torch.Tensor], stopping: bool) -> None:
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
    if stopping or any(due.values()):
        values = _averaged_over_processes(run, values)
        _stop_when_broken(step, values)
    if due["log"]:
        measured = measure(run.gan, values, run.batches.draws("generator", step)[0])
        log.record(step, measured)
        if warning := attention_warning(step, settings, measured):
            log.say(warning)
    if due["sheet"] or due["snapshot"] or due["scores"]:
        _show(run, log, due)
    if due["checkpoint"] or stopping or run.finished or run.progress.best_step == step:
        save(run)


def _show(run: Run, log: RunLog, due: dict[str, bool]) -> None:
    """Scores of the averaged generator, which may end the run, then its sheet and snapshot."""
    step = run.progress.step
    average = averaged_generator(run.gan.average)
    if run.evaluate is not None and due["scores"]:
        progress = run.evaluate(run.folder, run.progress, average, log.say)
        run.progress = broadcast_object_list([progress])[0]  # all must agree on what is the best
    last, best = run.finished, run.progress.best_step == step
    if run.accelerator.is_main_process:
        if due["sheet"] or last:
            save_sheets(run.folder, step, average, run.config.training.samples_per_class)
        if due["snapshot"] or last or best:
            save_snapshot(average, run.folder / "snapshots" / f"{step:08d}")


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


def _set_rates(run: Run, step: int) -> None:
    if run.config.optim.decay == "linear":
        begin, end = run.config.optim.decay_start, run.config.training.steps
        factor = min(1.0, (end - step) / max(end - begin, 1))
        for optimizer, adam in (
            (run.gan.generator_optimizer, run.config.optim.generator),
            (run.gan.discriminator_optimizer, run.config.optim.discriminator),
        ):
            for group in optimizer.param_groups:
                group["lr"] = adam.lr * factor


def _stop_when_broken(step: int, values: dict[str, torch.Tensor]) -> None:
    """A run that has diverged must not replace its sound checkpoints."""
    for name, value in values.items():
        if not torch.isfinite(value):
            raise UserError(f"{name} is {float(value)} at step {step}; stopped, the last checkpoint is from before")


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

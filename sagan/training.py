"""The training loop: step, log, show, score, save, until the run is finished, told to stop, or collapsed."""

import time
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from sagan.adversarial import discriminator_step, generator_step
from sagan.checkpoint import prune_checkpoints, save_checkpoint
from sagan.compilation import begin_update
from sagan.data.prefetch import Prefetcher
from sagan.ema import average_statistics, averaged_generator, decay_at, update_average
from sagan.monitoring import attention_warning, measure
from sagan.networks import Generator
from sagan.rollback import clear_stop, recover
from sagan.run import Run, set_rates
from sagan.sentinel import Trouble, broken_state, broken_values, watch_discriminator, watch_samples, watch_scores
from sagan.showing import save_sheets
from sagan.signals import caught_signals
from sagan.snapshot import save_snapshot
from sagan.tracking import RunLog

STEPS_BETWEEN_AGREEMENTS, SECONDS_BETWEEN_AGREEMENTS = 10, 1.0


def train(run: Run, log: RunLog) -> int | None:
    """Train until finished. Returns the number of the signal that ended it early (all saved), or None.

    UserError when the sentinel ends it.
    """
    clear_stop(run)
    _seal(run)
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
    fetch, agreement = run.batches.fetch(run.data), _Agreement(run, received)
    with Prefetcher(fetch, start * d_steps, settings.steps * d_steps) as reader:
        while not run.finished:
            step = run.progress.step
            set_rates(run)
            values = {}
            for update in range(step * d_steps, (step + 1) * d_steps):
                reals = run.batches.reals(update, next(reader))
                draws = run.batches.draws("discriminator", update)
                batches = list(zip(reals, draws, strict=True))
                if settings.cuda_graphs:
                    begin_update()
                values |= discriminator_step(run.gan, run.objective, batches, run.accelerator)
            values |= generator_step(run.gan, run.objective, run.batches.draws("generator", step), run.accelerator)
            decay = decay_at(run.config.ema, step + 1, settings.batch_size)
            update_average(run.gan.average, run.gan.generator, decay)
            run.progress = replace(run.progress, step=step + 1)
            stop = agreement.reached(step + 1)
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
    trouble, average = None, None
    if stopping or any(due.values()):
        values = _averaged_over_processes(run, values)
        written = stopping or any(due[name] for name in due if name != "log")
        trouble = broken_values(step, values) or (broken_state(step, run.gan) if written else None)
        trouble = _first_of_all(run, trouble)
    if trouble is None and due["log"]:
        trouble = _first_of_all(run, _log(run, log, values))
    if trouble is None and (due["sheet"] or due["snapshot"] or due["scores"]):
        trouble, average = _show(run, log, due)
    if trouble is not None:
        return trouble
    best = run.progress.best_step == step
    shown = average if due["snapshot"] or run.finished or best else None
    if shown is not None and not run.finished:
        _save_snapshot(run, shown)
    if due["checkpoint"] or stopping or run.finished or best:
        save(run)
    if shown is not None and run.finished:  # last: it says that the run is finished
        _save_snapshot(run, shown)
    return None


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


def _show(run: Run, log: RunLog, due: dict[str, bool]) -> tuple[Trouble | None, Generator]:
    """Scores of the averaged generator, which may end the run, and its sheet; what they betray, and the generator."""
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
    return trouble, average


def _save_snapshot(run: Run, average: Generator) -> None:
    if run.accelerator.is_main_process:
        save_snapshot(average, run.folder / "snapshots" / f"{run.progress.step:08d}")


def _seal(run: Run) -> None:
    """The last snapshot of a run that was killed between its last checkpoint and that; every process calls it."""
    if run.finished:
        average = averaged_generator(run.gan.average)
        if not (run.folder / "snapshots" / f"{run.progress.step:08d}").is_dir():
            _save_snapshot(run, average)


def save(run: Run) -> None:
    """Write the checkpoint of this step and prune the older ones; every process calls it."""
    average_statistics(run.gan.generator)
    average_statistics(run.gan.average)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        state, processes = None if scaler is None else scaler.state_dict(), run.accelerator.num_processes
        progress = replace(run.progress, scaler=state, processes=processes)
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

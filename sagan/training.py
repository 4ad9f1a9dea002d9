"""A run under Accelerate: build, prepare, resume, loop, save. The only file of training that knows Accelerate."""

import copy
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, broadcast_object_list

from sagan.adversarial import GAN, Objective, discriminator_step, generator_step
from sagan.batches import Batches
from sagan.checkpoint import Progress, load_checkpoint, newest_whole_checkpoint, prune_checkpoints, save_checkpoint
from sagan.config import check_processes
from sagan.data.dataset import PreparedData
from sagan.data.prefetch import Prefetcher
from sagan.ema import average_statistics, averaged_generator, decay_at, update_average
from sagan.errors import UserError
from sagan.losses import LOSSES
from sagan.monitoring import attention_warning, measure
from sagan.networks import build_discriminator, build_generator
from sagan.settings import Config
from sagan.showing import evaluate_samples, save_sheets
from sagan.signals import caught_signals
from sagan.snapshot import save_snapshot
from sagan.tracking import RunLog

STEPS_BETWEEN_AGREEMENTS = 10


@dataclass
class Run:
    """Everything the loop works on."""

    folder: Path
    config: Config
    data: PreparedData
    accelerator: Accelerator
    gan: GAN
    objective: Objective
    batches: Batches
    progress: Progress


def make_accelerator(config: Config, run: Path) -> Accelerator:
    """The Accelerator of a config's device, precision and trackers. UserError where the machine lacks them."""
    device = config.training.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda was asked for, this machine has no CUDA device; use auto or cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device: mps was asked for, this machine has no MPS device; use auto or cpu")
    precision = config.training.precision
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise UserError("training.precision: fp16 needs a CUDA device; use bf16 or no")
    trackers = config.training.trackers
    available = [str(kind) for kind in get_available_trackers()]
    if missing := [name for name in trackers if name not in available]:
        raise UserError(
            f"training.trackers: {missing[0]} is unknown or not installed; available: {', '.join(available) or 'none'}"
        )
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=str(run),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours is in the steps
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def build_run(folder: Path, config: Config, data: PreparedData, accelerator: Accelerator) -> Run:
    """Networks, optimisers and batches of a run, at step 0."""
    world, batch = accelerator.num_processes, config.training.batch_size
    check_processes(config, world)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    classes = data.manifest.num_classes if config.data.num_classes is None else config.data.num_classes
    names = tuple(data.manifest.class_names) if classes else ()
    generator, discriminator = build_generator(config, classes, names), build_discriminator(config, classes)
    average = copy.deepcopy(generator).requires_grad_(False).to(accelerator.device)
    if config.training.channels_last:
        generator.memory_format = average.memory_format = torch.channels_last
    optimizers = [
        torch.optim.Adam(n.parameters(), lr=s.lr, betas=s.betas, eps=s.eps, fused=accelerator.device.type != "mps")
        for n, s in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
    ]
    if config.training.compile:
        generator.compile()
        discriminator.compile()
    handles: Any = accelerator.prepare(generator, discriminator, *optimizers)
    gan = GAN(generator, discriminator, handles[0], handles[1], handles[2], handles[3], average)
    batches = Batches(
        config.seed, batch, config.optim.accumulation, accelerator.process_index, world, accelerator.device,
        generator.z_dim, classes, config.augment.policy, config.data.flip, config.training.channels_last,
    )  # fmt: skip
    objective = Objective(LOSSES[config.loss.name], config.loss.r1, config.augment.policy)
    return Run(folder, config, data, accelerator, gan, objective, batches, Progress(0))


def resume(run: Run) -> list[str]:
    """Load the newest whole checkpoint of the run's folder, if any; returns what to tell the user."""
    folder, problems = newest_whole_checkpoint(run.folder)
    if folder is None:
        if problems:
            raise UserError(f"{problems[0]}; no whole checkpoint is left, begin anew with another --out")
        return []
    run.progress = load_checkpoint(folder, run.gan)
    if run.progress.scaler and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(run.progress.scaler)
    return [*problems, f"resumed from step {run.progress.step}"]


def start_trackers(run: Run) -> Callable[[dict[str, float], int], None]:
    """Start the config's trackers; returns what hands them values."""
    if not run.config.training.trackers:
        return lambda values, step: None
    accelerator = run.accelerator
    accelerator.init_trackers("tracking")
    return lambda values, step: accelerator.log(values, step=step)


def close(run: Run) -> None:
    """End trackers and process group; every process calls it, when nothing more is to be trained.

    The wrapped networks go first: they hold the process group, whose threads must not outlive the interpreter.
    """
    run.accelerator.wait_for_everyone()
    run.accelerator.free_memory()
    run.gan.generator_handle, run.gan.discriminator_handle = run.gan.generator, run.gan.discriminator
    gc.collect()
    run.accelerator.end_training()


def train(run: Run, log: RunLog) -> int | None:
    """Train to the config's last step. Returns the number of the signal that ended it early (all saved), or None."""
    settings, start = run.config.training, run.progress.step
    d_steps = run.config.d_steps
    fetch = run.batches.fetch(run.data)
    with caught_signals() as received, Prefetcher(fetch, start * d_steps, settings.steps * d_steps) as reader:
        for step in range(start, settings.steps):
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
            _after_step(run, log, values, last=step + 1 == settings.steps, stopping=stop is not None)
            if stop is not None:
                return stop
    return None


def _after_step(run: Run, log: RunLog, values: dict[str, torch.Tensor], last: bool, stopping: bool) -> None:
    step, settings = run.progress.step, run.config.training
    log.advance(step)
    logging, saving = step % settings.log_every == 0 or last, step % settings.checkpoint_every == 0 or last or stopping
    if logging or saving:
        values = _averaged_over_processes(run, values)
        _stop_when_broken(step, values)
    if logging:
        measured = measure(run.gan, values, run.batches.draws("generator", step)[0])
        log.record(step, measured)
        if warning := attention_warning(step, settings, measured):
            log.say(warning)
    due = {
        name: last or step % every == 0
        for name, every in (
            ("sheet", settings.sample_every),
            ("snapshot", settings.snapshot_every),
        )
    }
    evaluating = bool(run.config.evaluate.every) and (last or step % run.config.evaluate.every == 0)
    if due["sheet"] or due["snapshot"] or evaluating:
        average = averaged_generator(run.gan.average)
        if run.accelerator.is_main_process:
            if due["sheet"]:
                save_sheets(run.folder, step, average, settings.samples_per_class)
            if due["snapshot"]:
                save_snapshot(average, run.folder / "snapshots" / f"{step:08d}")
            if evaluating:
                run.progress = evaluate_samples(run.folder, run.config.evaluate, run.progress, average, log.say)
        run.progress = broadcast_object_list([run.progress])[0]  # all must agree on what is the best
    if saving or run.progress.best_step == step:
        save(run)


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

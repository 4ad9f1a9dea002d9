"""A run under Accelerate: build it, resume it, set its learning rates, close it."""

import copy
import gc
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DynamoBackend,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn

from sagan.config.load import check_processes, flattened, replaced
from sagan.config.schema import Config
from sagan.data.dataset import PreparedData
from sagan.models.gan import GAN
from sagan.models.generator import Generator, build_discriminator, build_generator
from sagan.runs.checkpoint import Progress, load_checkpoint, newest_whole_checkpoint
from sagan.training.batches import Batches
from sagan.training.graphs import records_updates
from sagan.training.losses import Objective, make_objective
from sagan.utils.errors import UserError
from sagan.utils.io import make_folder


def compile_networks(*networks: nn.Module, cuda_graphs: bool = False) -> None:
    """Compile each network in place; forward and backward are compiled at the first call.

    `cuda_graphs`: record the compiled parts as CUDA graphs (no effect on other devices). Their results live in memory
    that the next replay overwrites: call `begin_update` before each discriminator update.
    """
    for network in networks:
        network.compile(dynamic=False, mode="reduce-overhead" if cuda_graphs else None)


def begin_update() -> None:
    """Tell CUDA graphs that no earlier result, gradients included, is needed any more."""
    torch.compiler.cudagraph_mark_step_begin()


# (folder of the run, progress, generator, message callback, whether to stop)
# -> (progress with the best score so far, scores by name)
Evaluate = Callable[
    [Path, Progress, Generator, Callable[[str], None], Callable[[], bool]], tuple[Progress, dict[str, float]]
]


@dataclass
class Run:
    """Everything the training loop works on."""

    folder: Path
    config: Config
    data: PreparedData
    accelerator: Accelerator
    gan: GAN
    objective: Objective
    batches: Batches
    progress: Progress
    evaluate: Evaluate | None = None
    rates: tuple[Tensor, Tensor] | None = None  # learning rates that recorded updates read: generator, discriminator

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or `evaluate.patience` has run out."""
        patience = self.config.evaluate.patience
        return self.progress.step >= self.config.training.steps or 0 < patience <= self.progress.stale


def resolve_precision(config: Config, recorded: Config | None) -> tuple[Config, str | None]:
    """The config with precision "auto" replaced, and a message about it.

    A run keeps the precision it has `recorded`. A new one takes what `accelerate launch --mixed_precision` says, else
    bf16 where the device computes in it (AVX512-BF16, AMX, CUDA from compute capability 8.0), else float32.
    """
    if config.training.precision != "auto":
        return config, None
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if recorded is not None:
        found, why = recorded.training.precision, "as in the run"
    elif launched is not None:
        found, why = ("float32" if launched == "no" else launched), "as launched"
    else:
        found = "bf16" if _computes_in_bf16(config.training.device) else "float32"
        why = f"the device {'computes' if found == 'bf16' else 'does not compute'} in bf16"
    return replaced(config, {"training": {"precision": found}}), f"training.precision: auto is {found} ({why})"


def _computes_in_bf16(device: str) -> bool:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return False
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile"))


UNSUPPORTED = {"DEEPSPEED": "DeepSpeed", "FSDP": "FSDP", "MEGATRON_LM": "Megatron-LM"}


def launcher_conflicts(config: Config) -> list[str]:
    """A message for everything that `accelerate launch` and the config (precision resolved) say differently.

    The config holds. UserError for plugins that training does not support.
    """
    if used := [name for name in UNSUPPORTED if parse_flag_from_env(f"ACCELERATE_USE_{name}")]:
        raise UserError(
            f"accelerate launch: {UNSUPPORTED[used[0]]} is not supported, because both networks fit on every GPU; use "
            "--multi_gpu, or torchrun"
        )
    training = config.training
    pairs = (
        ("MIXED_PRECISION", "training.precision", training.precision.replace("float32", "no"), training.precision),
        ("DYNAMO_BACKEND", "training.compile", "inductor" if training.compile else "no", training.compile),
        (
            "GRADIENT_ACCUMULATION_STEPS",
            "optim.accumulation",
            str(config.optim.accumulation),
            config.optim.accumulation,
        ),
    )
    messages = []
    for variable, setting, own, value in pairs:
        launched = os.environ.get(f"ACCELERATE_{variable}", "no").lower()
        if launched not in ("no", "1", own):
            option = f"--{variable.lower()} {launched}"
            messages.append(f"{setting}: {str(value).lower()} of the config holds, not {option} of accelerate launch")
    return messages


@contextmanager
def own_settings(config: Config) -> Iterator[None]:
    """Restore on exit what a run sets in torch and Accelerate, so that another run can follow in this process."""
    first, backends = not AcceleratorState._shared_state, torch.backends
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark
    attention, matmul = backends.cuda.cudnn_sdp_enabled(), backends.cuda.matmul
    tf32 = None if config.training.tf32 is None else (backends.cudnn.allow_tf32, matmul.allow_tf32)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        backends.cudnn.benchmark = benchmark
        backends.cuda.enable_cudnn_sdp(attention)
        if tf32 is not None:
            backends.cudnn.allow_tf32, matmul.allow_tf32 = tf32
        if first:
            AcceleratorState._reset_state(reset_partial_state=True)


def make_accelerator(config: Config, run: Path) -> Accelerator:
    """The Accelerator for a config's device, precision and trackers. Raises UserError if the machine lacks one."""
    device = config.training.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: this machine has no CUDA device; use auto or cpu instead of cuda")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device: this machine has no MPS device; use auto or cpu instead of mps")
    precision = config.training.precision
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise UserError("training.precision: fp16 needs a CUDA device; use bf16 or float32")
    trackers = config.training.trackers
    available = [str(kind) for kind in get_available_trackers()]
    if missing := [name for name in trackers if name not in available]:
        raise UserError(
            f"training.trackers: {missing[0]} is unknown or not installed; available: {', '.join(available) or 'none'}"
        )
    torch.backends.cuda.enable_cudnn_sdp(False)  # in bfloat16, cuDNN's fused attention gives NaN (docs/results/gpu)
    # without cpu=True, Accelerate treats processes without a GPU as separate single-process runs
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if precision == "float32" else precision,
        log_with=list(trackers) or None,
        project_dir=str(run),
        dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.NO),  # training.compile compiles
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # step.py accumulates by itself
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"{started} processes were started, but Accelerate sees {accelerator.num_processes} on "
            f"{accelerator.device}; several processes need CUDA devices, or training.device: cpu"
        )
    return accelerator


def build_run(folder: Path, config: Config, data: PreparedData, accelerator: Accelerator) -> Run:
    """Build networks, optimizers and batches of a run, at step 0."""
    world, batch = accelerator.num_processes, config.training.batch_size
    check_processes(config, world)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = config.training.cudnn_benchmark
    if config.training.tf32 is not None:  # torch does not allow this API and the one of `fp32_precision` in one process
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.training.tf32
    classes = data.manifest.num_classes if config.data.num_classes is None else config.data.num_classes
    names = tuple(data.manifest.class_names) if classes else ()
    generator, discriminator = build_generator(config, classes, names), build_discriminator(config, classes)
    ema = copy.deepcopy(generator).requires_grad_(False).to(accelerator.device)
    if config.training.channels_last:
        generator.memory_format = ema.memory_format = torch.channels_last
    recorded = records_updates(config.training, accelerator.device)
    if recorded and world > 1:
        raise UserError("training.cuda_graphs without training.compile supports one process; set training.compile too")
    optimizers = [
        torch.optim.Adam(
            n.parameters(),
            lr=s.lr,
            betas=s.betas,
            eps=s.eps,
            fused=accelerator.device.type != "mps",
            capturable=recorded,
        )
        for n, s in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
    ]
    if config.training.compile:
        compile_networks(generator, discriminator, cuda_graphs=config.training.cuda_graphs)
    prepared: Any = accelerator.prepare(generator, discriminator, *optimizers)
    gan = GAN(generator, discriminator, *prepared, ema=ema)
    consistency = config.loss.consistency
    batches = Batches(
        config.seed, batch, config.optim.accumulation, accelerator.process_index, world, accelerator.device,
        generator.z_dim, classes, config.augment.policy, config.data.flip, config.training.channels_last,
        transforms=bool(consistency.reals or consistency.fakes),
        noise=bool(consistency.latents or consistency.diversity),
    )  # fmt: skip
    progress = Progress(0, scored=_scored(config))
    run = Run(folder, config, data, accelerator, gan, make_objective(config), batches, progress)
    if recorded:
        run.rates = (torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device))
    return run


def resume(run: Run) -> list[str]:
    """Load the newest intact checkpoint of the run's folder, if any. Returns messages for the user."""
    folder, problems = newest_whole_checkpoint(run.folder)
    steps = gather_object([None if folder is None else int(folder.name)])
    precisions = sorted({*gather_object([run.config.training.precision])})
    if len(precisions) > 1:
        raise UserError(f"training.precision: auto is {' and '.join(precisions)} on different machines; choose one")
    if any(step != steps[0] for step in steps):
        raise UserError(
            f"{run.folder}: the processes see different checkpoints (steps {', '.join(map(str, steps))}); "
            "all processes must share the run's folder"
        )
    if folder is None:
        if problems:
            raise UserError(f"{problems[0]}; no intact checkpoint is left, start again with another --out")
        begun = (run.folder / "log.jsonl").is_file()
        return ["an earlier start of this run left no checkpoint; starting at step 0"] if begun else []
    messages, count = load(run, folder), run.progress.rollbacks
    resumed = f"resumed from step {run.progress.step}{f', rolled back {count} times' if count else ''}"
    return [*problems, resumed, *messages]


def load(run: Run, checkpoint: Path) -> list[str]:
    """Set the run to a checkpoint: tensors, progress, and the batches that follow from its rollbacks.

    Returns a message for everything that differs from when the checkpoint was written.
    """
    saved = load_checkpoint(checkpoint, run.gan)
    run.batches = replace(run.batches, rollbacks=saved.rollbacks)
    if saved.scaler and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(saved.scaler)
    run.progress, messages = _reset_incomparable(saved, _scored(run.config))
    return messages + _other_processes(run, saved)


def _scored(config: Config) -> str | None:
    """The settings of the scores that decide anything (None: none do). Scores are comparable only if these agree."""
    settings = config.evaluate
    if not settings.every or (settings.best is None and not config.divergence.worse):
        return None
    named = ("best", "num", "labels", "reference", "backbone", "lpips")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in named)


def _reset_incomparable(saved: Progress, scored: str | None) -> tuple[Progress, list[str]]:
    """The progress, without its best scores if they are not comparable with today's, and a message that says so."""
    if scored is None or saved.scored in (scored, None):
        return replace(saved, scored=scored or saved.scored), []
    message = (
        f"evaluate: scores are now ({scored}), before ({saved.scored}); they are not comparable, so the best "
        f"(step {saved.best_step}) is forgotten"
    )
    return replace(saved, scored=scored, best=None, best_step=None, stale=0, records={}), [message]


def _other_processes(run: Run, saved: Progress) -> list[str]:
    """A message about what a changed number of processes changes."""
    now, batch = run.accelerator.num_processes, run.config.training.batch_size // run.config.optim.accumulation
    if saved.processes in (now, None):
        return []
    message = (
        f"saved by {saved.processes} {'process' if saved.processes == 1 else 'processes'}, resumed by {now}: the same "
        "global batch and order of data, but reduced in a different order; not bitwise identical"
    )
    if not run.config.generator.sync_norm:
        message += (
            f"; batch norm normalizes over {batch // now} images instead of {batch // saved.processes} "
            "(generator.sync_norm: true normalizes over all)"
        )
    return [message]


def set_rates(run: Run) -> None:
    """Set the learning rates of the next step: the config's, decayed, times the factor of the rollbacks so far."""
    optim, factor = run.config.optim, run.progress.rate
    if optim.decay == "linear":
        steps = run.config.training.steps
        factor *= min(1.0, (steps - run.progress.step) / max(steps - optim.decay_start, 1))
    for index, (optimizer, adam) in enumerate((
        (run.gan.generator_optimizer, optim.generator),
        (run.gan.discriminator_optimizer, optim.discriminator),
    )):  # fmt: skip
        for group in optimizer.param_groups:
            group["betas"], group["eps"] = adam.betas, adam.eps  # a checkpoint has those before a change
            group["lr"] = adam.lr * factor if run.rates is None else run.rates[index].fill_(adam.lr * factor)


class Trackers:
    """The config's trackers, with the config as hyperparameters. Values and pictures have the number of their step."""

    def __init__(self, run: Run) -> None:
        self.accelerator = run.accelerator
        if run.config.training.trackers:
            known = {} if run.progress.step else flattened(run.config)  # once, not in every resume
            plain = {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in known.items()}
            place = make_folder(run.folder / "tracking")
            wandb = {"name": run.folder.name, "dir": str(place)}
            self.accelerator.init_trackers("tracking", plain or None, {"wandb": wandb})
            threading.excepthook = _but_tensorboard(threading.excepthook)

    def values(self, values: Mapping[str, float], step: int) -> None:
        """Track scalars."""
        self.accelerator.log({**values}, step=step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Track an image, uint8 (H, W, 3), where the tracker takes images."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                one = tracker.name in ("aim", "clearml")  # the others take lists
                tracker.log_images({name: picture if one else [picture]}, step=step)


def _but_tensorboard(show: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`show`, but for errors in TensorBoard's thread, such as a full disk: its next write raises them in this one."""
    return lambda error: None if type(error.thread).__name__ == "_AsyncWriterThread" else show(error)


def close(run: Run) -> None:
    """End trackers and process group once training is over. Every process calls it.

    The wrapped networks go first: they hold the process group, whose threads must not outlive the interpreter.
    """
    run.accelerator.wait_for_everyone()
    run.accelerator.free_memory()
    run.gan.ddp_generator, run.gan.ddp_discriminator = run.gan.generator, run.gan.discriminator
    gc.collect()
    run.accelerator.end_training()

"""A tiny GAN and the inputs of its updates, in float64; a tiny run and its data. Shared by the tests of training."""

import copy
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from network_cases import scatter
from torch import Tensor, nn

from sagan.config.load import Config, load_config
from sagan.data.dataset import PreparedData
from sagan.data.prepare import prepare
from sagan.models.gan import GAN
from sagan.models.generator import build_discriminator, build_generator
from sagan.training.augment import draw_augmentation
from sagan.training.logging import RunLog
from sagan.training.state import Run, build_run, make_accelerator, resume
from sagan.training.step import LatentBatch, RealBatch
from sagan.training.trainer import resolved, train

CLASSES = 4
TINY = {
    "generator": {"channels": 2, "z_dim": 8, "attention": {8: "self_attention"}},
    "discriminator": {"channels": 2, "attention": {8: "self_attention"}},
    "optim": {"generator": {"lr": 1e-3}, "discriminator": {"lr": 2e-3}},
    "training": {
        "steps": 6,
        "batch_size": 8,
        "device": "cpu",
        "precision": "float32",
        "trackers": [],
        "log_every": 1,
        "checkpoint_every": 1000,
        "samples_per_class": 1,
    },
}


def tiny_config(*overrides: str) -> Config:
    """The config of the smallest networks with attention, changed as `--set` does."""
    return load_config(None, [*(f"{group}={yaml.safe_dump(TINY[group])}" for group in TINY), *overrides])


def tiny_gan(config: Config, num_classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> GAN:
    """A GAN in which no parameter is at its initial value and no weight fits its spectral-norm vectors."""
    generator = scatter(build_generator(config, num_classes).to(dtype))
    discriminator = scatter(build_discriminator(config, num_classes).to(dtype))
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=adam.lr, betas=adam.betas)
        for network, adam in ((generator, config.optim.generator), (discriminator, config.optim.discriminator))
    ]
    return GAN(generator, discriminator, generator, discriminator, *optimizers, copy.deepcopy(generator))


def one_process() -> Accelerator:
    """Accelerate on one CPU process in full precision, whatever the tests before asked for."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def tiny_batches(
    config: Config,
    count: int,
    size: int,
    seed: int = 0,
    num_classes: int = CLASSES,
    dtype: torch.dtype = torch.float64,
) -> list[tuple[RealBatch, LatentBatch]]:
    """`count` micro-batches of `size` images: reals and the random inputs of fakes, all different."""
    rng = torch.Generator().manual_seed(seed)
    policy, resolution = config.augment.policy, config.data.resolution

    def labels() -> torch.Tensor | None:
        return torch.randint(num_classes, (size,), generator=rng) if num_classes else None

    def augmentation() -> torch.Tensor:
        return draw_augmentation(policy, size, rng).to(dtype)

    def draws(count: int) -> torch.Tensor:
        return torch.rand(size, count, generator=rng, dtype=dtype)

    def micro_batch() -> tuple[RealBatch, LatentBatch]:
        images = torch.rand(size, 3, resolution, resolution, generator=rng, dtype=dtype) * 2 - 1
        z = torch.randn(size, config.generator.z_dim, generator=rng, dtype=dtype)
        reals, fakes = RealBatch(images, labels(), augmentation()), LatentBatch(z, labels(), augmentation())
        return replace(reals, transform=draws(3)), replace(fakes, transform=draws(3), noise=torch.randn_like(z))

    return [micro_batch() for _ in range(count)]


def tiny_data(folder: Path, count: int = 40) -> PreparedData:
    """Prepared shapes, 4 classes, in `folder`."""
    return prepare(f"shapes:{count}", folder, 32, report=lambda line: None)


def write_config(path: Path, prepared: PreparedData, **changes: dict) -> Path:
    """A config file of the tiny run on `prepared`; `changes`: settings of a group."""
    groups = {"data": {"source": str(prepared.folder)}, **TINY}
    groups = {name: groups.get(name, {}) | changes.get(name, {}) for name in {**groups, **changes}}
    path.write_text(yaml.safe_dump(groups))
    return path


def tiny_run(folder: Path, config: Config, data: PreparedData) -> Run:
    """A run at step 0, its networks prepared by Accelerate, as `sagan train` builds it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = resolved(config, data)
    run = build_run(folder, config, data, make_accelerator(config, folder))
    if config.evaluate.every:
        from sagan.training.evaluator import make_evaluator

        run.evaluate = make_evaluator(config.evaluate, data, config.data.num_classes or 0, run.accelerator.device)
    return run


def train_tiny(folder: Path, config: Config, data: PreparedData, interrupt_at: int | None = None) -> Run:
    """Train or resume in this process, as `sagan train` does; a SIGTERM comes while step `interrupt_at` is logged."""
    run = tiny_run(folder, config, data)
    resume(run)

    def track(values: dict[str, float], step: int) -> None:
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)

    log = RunLog(folder, run.progress.step, run.config.training.steps, run.config.training.batch_size, track)
    stopped = train(run, log)
    assert stopped == (None if interrupt_at is None else signal.SIGTERM)
    return run


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name relative to it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines_of(path: Path) -> list[dict]:
    """The objects in a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_of(run: Path) -> list[dict[str, float]]:
    """log.jsonl without what depends on the machine."""
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "memory_mib")}
        for line in lines_of(run / "log.jsonl")
    ]


def tensors(gan: GAN) -> dict[str, Tensor]:
    """Everything that a run goes on with."""
    state = {f"{n}.{k}": t for n in ("generator", "discriminator", "ema")
             for k, t in getattr(gan, n).state_dict().items()}  # fmt: skip
    for name in ("generator_optimizer", "discriminator_optimizer"):
        for index, entries in getattr(gan, name).state_dict()["state"].items():
            state |= {f"{name}.{index}.{key}": value for key, value in entries.items()}
    return state


def assert_same_state(network: nn.Module, expected: dict[str, Tensor]) -> None:
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def assert_same_bits(a: GAN, b: GAN) -> None:
    assert tensors(a).keys() == tensors(b).keys()
    for name, tensor in tensors(a).items():
        assert torch.equal(tensor, tensors(b)[name]), name
    for name in ("generator_optimizer", "discriminator_optimizer"):
        assert getattr(a, name).state_dict()["param_groups"] == getattr(b, name).state_dict()["param_groups"]

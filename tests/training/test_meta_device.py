"""Training steps never wait for the host, and their tensors are all on one device: with networks on the meta device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_device import META, device
from tiny import one_process, tiny_batches, tiny_config, tiny_run

import sagan.training.graphs
import sagan.training.state
from sagan.config.load import Config, load_config, replaced
from sagan.data.dataset import PreparedData
from sagan.models.gan import GAN
from sagan.models.generator import build_discriminator, build_generator
from sagan.training.ema import update_ema
from sagan.training.losses import make_objective
from sagan.training.step import LatentBatch, RealBatch, discriminator_step, generator_step
from sagan.training.trainer import train

CONFIGS = Path(__file__).parents[2] / "configs"
EVERYTHING = (
    "loss.r1=1", "loss.r1_every=2", "loss.r2=1", "loss.lecam=0.3", "loss.orthogonal=1.0e-4",
    "loss.consistency={reals: 1, fakes: 1, latents: 1, diversity: 1}",
    "augment.policy=[color, translation, cutout]", "data.flip=true",
)  # fmt: skip
RUNS = {
    "everything": (*EVERYTHING, "optim.d_steps=2", "optim.decay=linear"),
    "relativistic": ("loss.name=relativistic", "ema.decay=0.99", "training.channels_last=false"),
    "coarse_to_fine": ("discriminator.frontend=coarse_to_fine", "discriminator.channels=4"),
    "zoom": ("discriminator.frontend=zoom", "loss.r1=1"),
    "recorded": ("training.cuda_graphs=true", "loss.consistency.reals=1"),
}


class Descent(torch.optim.Optimizer):
    """Gradient descent whose learning rate may be a tensor: Adam's kernels do not run on the meta device."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad * group["lr"])


def on_meta(gan: GAN) -> GAN:
    networks = [network.to(META) for network in (gan.generator, gan.discriminator)]
    optimizers = [Descent(network.parameters(), {"lr": 1e-3}) for network in networks]
    return GAN(*networks, *networks, *optimizers, ema=gan.ema.to(META))


class Enough(Exception):
    """Ends a run from within its loop."""


class Log:
    """A log that ends the run after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, step: int) -> None:
        if step == self.steps:
            raise Enough


class Replayed:
    def __init__(self, function: Any, parameters: object) -> None:
        self.replay = function


@pytest.mark.parametrize("name", RUNS)
def test_steps_never_wait_for_the_host(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The loop of `sagan train` between two logs, its thread without any traffic with the device."""
    for module in (sagan.training.state, sagan.training.graphs):
        monkeypatch.setattr(module, "records_updates", lambda settings, device: settings.cuda_graphs)
    monkeypatch.setattr(sagan.training.graphs, "CudaGraph", Replayed)
    run = tiny_run(tmp_path, tiny_config("training.steps=9", "training.log_every=100", *RUNS[name]), data)
    run.gan, run.batches = on_meta(run.gan), replace(run.batches, device=META)
    if run.rates is not None:
        run.rates = torch.zeros((), device=META), torch.zeros((), device=META)
    steps = 5 if name == "recorded" else 2
    with device(), pytest.raises(Enough):
        train(run, Log(steps))  # type: ignore[arg-type]
    assert run.progress.step == steps


def shipped(path: Path) -> Config:
    """A shipped config with narrow networks, and R1 for a double backward."""
    config = load_config(
        path, [*EVERYTHING, "training.compile=false", "discriminator.init=xavier", "generator.init=xavier"]
    )
    return replaced(config, {"generator": {"channels": 16}, "discriminator": {"channels": 16}})  # groups and heads fit


def assert_trains_on_meta(config: Config) -> None:
    """An update of each network, with a double backward, and of the average."""
    classes = 3 if config.data.num_classes is None else config.data.num_classes
    generator, discriminator = build_generator(config, classes), build_discriminator(config, classes)
    ema = build_generator(config, classes).requires_grad_(False)
    none: Any = None
    gan = on_meta(GAN(generator, discriminator, generator, discriminator, none, none, ema))
    objective, accelerator = make_objective(config), one_process()

    def move(batch: RealBatch | LatentBatch) -> Any:
        return replace(batch, **{k: v.to(META) for k, v in vars(batch).items() if v is not None})

    pairs = tiny_batches(config, 1, 4, num_classes=classes, dtype=torch.float32)
    batches = [(move(reals), move(latents)) for reals, latents in pairs]
    with device():
        discriminator_step(gan, objective, batches, accelerator)
        generator_step(gan, objective, [batches[0][1]], accelerator, [batches[0][0]])
        update_ema(gan.ema, gan.generator, 0.999)
    for network in (generator, discriminator):
        assert {p.grad.device.type for p in network.parameters() if p.grad is not None} == {"meta"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_stay_on_the_device(path: Path) -> None:
    assert_trains_on_meta(shipped(path))


@pytest.mark.parametrize("front", ["coarse_to_fine", "{name: zoom, scales: 3, size: 16, mask: true}"])
@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_front_ends_stay_on_the_device(front: str, loss: str) -> None:
    assert_trains_on_meta(
        tiny_config(*EVERYTHING, f"discriminator.frontend={front}", "discriminator.channels=4", f"loss.name={loss}")
    )

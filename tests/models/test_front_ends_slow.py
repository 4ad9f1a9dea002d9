"""Front-ends compiled, and in two real processes (torchrun, gloo, CPU) against one."""

from pathlib import Path

import pytest
import torch
from front_ends import FRONT_ENDS, front_end_config
from processes import RATES, assert_same_losses, train_in_two
from tiny import one_process, tiny_batches, tiny_gan, train_tiny, write_config

from sagan.data.dataset import PreparedData
from sagan.training.losses import LOSSES, Objective
from sagan.training.step import discriminator_step, generator_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]
each = pytest.mark.parametrize("name", ["coarse_to_fine", "zoom"])


@each
def test_compiled(name: str):
    """Both updates work compiled and give the same values."""
    torch.compiler.reset()
    config = front_end_config(FRONT_ENDS[name])
    plain, compiled = tiny_gan(config), tiny_gan(config)
    compiled.discriminator.compile(backend="aot_eager")
    objective, batches = Objective(LOSSES["hinge"]), tiny_batches(config, 1, 2)
    for _ in range(2):
        for step, given in ((discriminator_step, batches), (generator_step, [draws for _, draws in batches])):
            expected, found = (step(gan, objective, given, one_process()) for gan in (plain, compiled))
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)


@each
def test_two_processes_are_one(name: str, tmp_path: Path, data: PreparedData):
    """Two processes with two micro-batches each equal one process with four."""
    settings = {"optim": {"accumulation": 2, **RATES}, "training": {"steps": 3},
                "loss": {"name": "non_saturating", "r1": 1.0},
                "discriminator": {"channels": 4, "frontend": name}}  # fmt: skip
    train_in_two(write_config(tmp_path / "config.yaml", data, **settings), tmp_path / "two")
    one = front_end_config(name, f"optim={RATES}", "optim.accumulation=4", "training.steps=3", "loss.r1=1.0",
                           "loss.name=non_saturating")  # fmt: skip
    train_tiny(tmp_path / "one", one, data)
    assert_same_losses(tmp_path / "two", tmp_path / "one", rel=1e-4)

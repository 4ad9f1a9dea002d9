"""torch.compile: one graph for each way in which the updates call a network, and the losses of the eager step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import RATES, assert_same_losses, launch
from tiny import log_of, one_process, tiny_batches, tiny_config, tiny_gan, tiny_run, train_tiny, write_config
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from sagan.config.load import Config
from sagan.data.dataset import PreparedData
from sagan.training.logging import RunLog, measure
from sagan.training.losses import LOSSES, Objective
from sagan.training.state import resume
from sagan.training.step import discriminator_step, generator_step
from sagan.training.trainer import train

CALLS = 4  # of G: for the fakes of D's update, in its own; of D: on reals and fakes, on the fakes of G's update
LOOKING = ("training.sample_every=2", "training.checkpoint_every=2", "evaluate.every=2", "evaluate.num=8",
           "evaluate.metrics=[coherence]", "divergence.action=rollback", f"optim={RATES}")  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """A compiler that remembers nothing, in this process."""
    torch.compiler.reset()
    counters.clear()
    with inductor.patch(compile_threads=1):
        yield
    torch.compiler.reset()


def assert_compiled_once(graphs: int) -> None:
    """Compiled `graphs` graphs since the test began, without a graph break."""
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["frames"]["ok"] == counters["frames"]["total"] == graphs


@pytest.mark.parametrize(("accumulation", "graphs"), [(1, CALLS), (2, CALLS + 1)])
def test_a_graph_for_every_way_of_calling(accumulation: int, graphs: int) -> None:
    """Held micro-batches add a graph of G, whose batch norms they hold; power iterations are in no graph."""
    config = tiny_config("generator.attention={8: self_attention, 16: em_attention}")
    eager, compiled = tiny_gan(config), tiny_gan(config)
    for network in (compiled.generator, compiled.discriminator):
        network.compile(backend="aot_eager", dynamic=False)
    objective, batches = Objective(LOSSES["hinge"]), tiny_batches(config, accumulation, 4)
    draws = [draws for _, draws in batches]
    for _ in range(3):
        expected, found = (
            discriminator_step(gan, objective, batches, one_process())
            | generator_step(gan, objective, draws, one_process())
            for gan in (eager, compiled)
        )
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        seen, looked = (measure(gan, {}, draws[0]) for gan in (eager, compiled))
        assert looked == pytest.approx(seen | {"memory_mib": looked["memory_mib"]}, rel=1e-6, abs=1e-8)
        assert_compiled_once(graphs)


def train_over_a_collapse(folder: Path, config: Config, data: PreparedData) -> None:
    """Train; once, after step 3, a weight becomes NaN, so the run goes back to its checkpoint of step 2."""
    run = tiny_run(folder, config, data)
    resume(run)

    def track(values: dict[str, float], step: int) -> None:
        if step == 3 and not run.progress.rollbacks:
            with torch.no_grad():
                run.gan.generator.norm.bias.fill_(torch.nan)

    assert train(run, RunLog(folder, run.progress.step, config.training.steps, 8, track)) is None
    assert run.progress.rollbacks == 1


def test_a_compiled_run_is_the_eager_run(tmp_path: Path, data: PreparedData) -> None:
    for name, compiled in (("eager", False), ("compiled", True)):
        settings = (*LOOKING, f"training.compile={compiled}")
        train_over_a_collapse(tmp_path / name, tiny_config(*settings, "training.steps=5"), data)
        assert_compiled_once(CALLS * compiled)
        train_tiny(tmp_path / name, tiny_config(*settings, "training.steps=7"), data)
        assert_compiled_once(2 * CALLS * compiled)  # other networks: a run that goes on builds its own
    assert len(log_of(tmp_path / "compiled")) == 7
    assert_same_losses(tmp_path / "compiled", tmp_path / "eager", rel=1e-3)


def test_two_compiled_processes_are_two_eager_ones(tmp_path: Path, data: PreparedData) -> None:
    changes = {"generator": {"sync_norm": True}, "optim": RATES, "training": {"steps": 3}}
    config = write_config(tmp_path / "config.yaml", data, **changes)
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        with launch(config, tmp_path / name, f"training.compile={compiled}") as process:
            _, said = process.communicate(timeout=1500)
        assert process.returncode == 0, said[-4000:]
    assert_same_losses(tmp_path / "compiled", tmp_path / "eager", rel=1e-3)

"""CUDA graphs without a GPU: what they overwrite is no longer read; elsewhere they change nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import log_of, tiny_config, train_tiny
from torch._inductor import config as inductor

import sagan.training.graphs
import sagan.training.state
import sagan.training.trainer
from sagan.data.dataset import PreparedData

LOOKING = ("training.steps=4", "training.sample_every=2", "training.checkpoint_every=2", "evaluate.every=2",
           "evaluate.num=8", "evaluate.metrics=[coherence]", "optim.d_steps=2", "optim.accumulation=2")  # fmt: skip

pytestmark = pytest.mark.usefixtures("alone")


class Overwriting:
    """The memory of CUDA graphs: outputs of the networks and the gradients of their parameters, until a new update."""

    def __init__(self) -> None:
        self.networks: list[torch.nn.Module] = []
        self.outputs: list[torch.Tensor] = []
        self.updates = 0

    def compile_networks(self, *networks: torch.nn.Module, cuda_graphs: bool) -> None:
        assert cuda_graphs
        self.networks = list(networks)
        for network in networks:
            network.register_forward_hook(self._keep)

    def _keep(self, network: torch.nn.Module, given: Any, output: Any) -> None:
        tensors = [output] if isinstance(output, torch.Tensor) else [output.logits, *output.penalties.values()]
        self.outputs += [tensor.detach() for tensor in tensors]

    @torch.no_grad()
    def begin_update(self) -> None:
        gradients = [p.grad for network in self.networks for p in network.parameters() if p.grad is not None]
        for tensor in [*self.outputs, *gradients]:
            tensor.fill_(torch.nan)
        self.outputs.clear()
        self.updates += 1


def test_nothing_is_read_after_it_may_be_overwritten(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step, log, score or checkpoint reads the memory of an earlier update's graphs."""
    train_tiny(tmp_path / "eager", tiny_config(*LOOKING), data)
    memory = Overwriting()
    monkeypatch.setattr(sagan.training.state, "compile_networks", memory.compile_networks)
    monkeypatch.setattr(sagan.training.trainer, "begin_update", memory.begin_update)
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train_tiny(
        tmp_path / "graphs", tiny_config(*LOOKING, "training.compile=true", "training.cuda_graphs=true"), data
    )
    assert memory.updates == 4 * 2
    assert memory.outputs
    assert log_of(tmp_path / "graphs") == log_of(tmp_path / "eager")
    assert all(p.isfinite().all() for network in memory.networks for p in network.parameters())
    assert run.finished


class Replayed:
    """A stand-in for a CUDA graph: replays by calling the function, and never at its creation."""

    def __init__(self, function: Callable[[], dict[str, torch.Tensor]], parameters: list[torch.nn.Parameter]) -> None:
        self.replay, self.parameters = function, parameters
        COUNTS.append(0)


COUNTS: list[int] = []
RECORDED = ("training.steps=7", "optim.d_steps=2", "optim.decay=linear", "loss.name=relativistic", "loss.r1=0.5",
            "loss.r1_every=3", "loss.consistency.reals=2", "loss.lecam=0.1", "training.checkpoint_every=5",
            "discriminator.attention={8: {name: em_attention, bases: 4}}")  # fmt: skip


@pytest.mark.parametrize("stop", [None, 5])
def test_recorded_updates_are_the_eager_ones(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    train_tiny(tmp_path / "eager", tiny_config(*RECORDED), data)
    for module in (sagan.training.state, sagan.training.graphs):
        monkeypatch.setattr(module, "records_updates", lambda settings, device: settings.cuda_graphs)
    monkeypatch.setattr(sagan.training.graphs, "CudaGraph", Replayed)
    COUNTS.clear()
    for steps in (stop, None) if stop else (None,):  # resumed from a checkpoint with learning rates as numbers
        AcceleratorState._reset_state(reset_partial_state=True)
        config = tiny_config(*RECORDED, "training.cuda_graphs=true")
        train_tiny(tmp_path / "graphs", config, data, interrupt_at=steps)
    assert len(COUNTS) >= 2  # of the discriminator with and without R1, and of the generator, where warmed up
    eager, graphs = (log_of(tmp_path / name) for name in ("eager", "graphs"))
    assert [line["step"] for line in eager] == [line["step"] for line in graphs]
    for found, expected in zip(graphs, eager, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_without_a_gpu_they_change_nothing(tmp_path: Path, data: PreparedData) -> None:
    """Without a GPU the setting has no effect."""
    with inductor.patch(compile_threads=1):
        for name in ("false", "true"):
            torch.compiler.reset()
            AcceleratorState._reset_state(reset_partial_state=True)
            settings = ("training.steps=3", "training.compile=true", f"training.cuda_graphs={name}")
            train_tiny(tmp_path / name, tiny_config(*settings), data)
    torch.compiler.reset()
    assert log_of(tmp_path / "true") == log_of(tmp_path / "false")

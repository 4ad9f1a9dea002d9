"""CUDA graphs without a GPU: what they overwrite is no longer read; elsewhere they change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import log_of, tiny_config, train_tiny
from torch._inductor import config as inductor

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

"""What a command imports, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_generator import small_generator

from sagan.runs.snapshot import save_snapshot

NEVER = {
    "torchvision", "torch_fidelity", "lpips", "accelerate", "matplotlib", "tensorboard", "scipy", "onnx", "imageio",
    "requests", "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "sympy", "triton",
    "torch.utils.tensorboard", "sagan.training.trainer", "sagan.evaluation", "sagan.data", "sagan.inspection",
}  # fmt: skip
COMMAND = """
import sys
from sagan.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""
TORCH = "import sys, torch, huggingface_hub; huggingface_hub.PyTorchModelHubMixin; print(*sys.modules)"


def imported(program: str, *arguments: object) -> set[str]:
    """The modules that a program has imported when it ends."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
def test_sample_imports_only_what_it_uses(tmp_path: Path) -> None:
    save_snapshot(small_generator(), tmp_path / "snapshot")
    found = imported(COMMAND, "sample", tmp_path / "snapshot", "--num", 2, "--out", tmp_path / "out", "--device", "cpu")
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 2
    assert {"torch", "sagan.sampling.sampler"} <= found
    assert sorted((NEVER & found) - imported(TORCH)) == []  # which differs between versions


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_help_needs_little_more_than_click(command: str) -> None:
    assert not imported(COMMAND, command) & {"torch", "numpy", "pydantic", "yaml", "PIL", "rich", "huggingface_hub"}


def test_configs_need_no_torch() -> None:
    assert "torch" not in imported(COMMAND, "configs")

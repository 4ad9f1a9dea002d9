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
PROGRAM = """
import sys
from sagan.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""


def imported(*command: object) -> set[str]:
    """The modules that `sagan COMMAND` has imported when it ends."""
    arguments = [sys.executable, "-c", PROGRAM, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_sample_imports_only_what_it_uses(tmp_path: Path) -> None:
    save_snapshot(small_generator(), tmp_path / "snapshot")
    found = imported("sample", tmp_path / "snapshot", "--num", 2, "--out", tmp_path / "out", "--device", "cpu")
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 2
    assert {"torch", "sagan.sampling.sampler"} <= found
    before = imported_by_torch()
    assert sorted((NEVER & found) - before) == []


def imported_by_torch() -> set[str]:
    """What torch and huggingface_hub's part of a snapshot import themselves, which differs between their versions."""
    program = "import sys, torch, huggingface_hub; huggingface_hub.PyTorchModelHubMixin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("command", [["--help"], ["--version"]], ids=" ".join)
def test_help_imports_no_numbers(command: list[str]) -> None:
    assert not imported(*command) & {"torch", "numpy", "pydantic", "yaml", "PIL", "rich", "huggingface_hub"}

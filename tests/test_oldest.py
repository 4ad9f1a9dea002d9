"""tests/oldest.txt pins every dependency to the lower bound of pyproject.toml; `make oldest` tests with them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BOUND = re.compile(r'"([a-z0-9-]+)(?:>=([0-9.]+))?",?')
NEWEST = {  # not imported here, so the newest is as good
    "ruff", "pyright", "import-linter", "playwright", "wandb", "build", "mkdocs-material", "mkdocstrings-python",
    "nbclient", "nbconvert", "ipykernel",
}  # fmt: skip
TRIED = [
    "training/test_compile.py::test_a_graph_for_every_way_of_calling",
    "training/test_trainer.py",
    "runs/test_snapshot.py",
    "layers/test_layers.py",
]
UNBOUNDED = {"torchvision": "torch requires its own version of it"}


def lower_bounds() -> dict[str, str | None]:
    """Name -> lower bound of every dependency in pyproject.toml; the standard library of Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|export|h5|heif|hub|dev) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 6
    return {name: bound or None for entries in lists for name, bound in BOUND.findall(entries)}


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    bounds = lower_bounds().items()
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(
        f"{name}=={bound}" for name, bound in bounds if bound is not None and name not in NEWEST
    )


def test_every_dependency_has_a_lower_bound() -> None:
    assert {name for name, bound in lower_bounds().items() if bound is None} == set(UNBOUNDED)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest numpy has no wheel for this Python")
def test_training_and_compiling_with_them() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    tests = [f"tests/{name}" for name in TRIED]
    for command in (
        ["make", ".venv-oldest/ready", f"PYTHON={sys.executable}"],
        [".venv-oldest/bin/python", "-m", "pytest", "-q", "-n", "2", "--dist", "load", *tests],
    ):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:]

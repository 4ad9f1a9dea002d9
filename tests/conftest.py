"""Shared fixtures."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_data

from sagan.data.dataset import PreparedData

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the real data and weights; tests that use it are marked `assets`."""
    folder = os.environ.get("SAGAN_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SAGAN_ASSETS does not name a folder")
    return Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A few shapes, prepared."""
    return tiny_data(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def alone() -> Iterator[None]:
    """One thread, as in the subprocesses, and an Accelerate that remembers nothing of the test before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)

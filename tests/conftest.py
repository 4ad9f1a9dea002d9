"""Shared fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the real data and weights; tests that use it are marked `assets`."""
    folder = os.environ.get("SAGAN_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SAGAN_ASSETS does not name a folder")
    return Path(folder)

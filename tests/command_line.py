"""`sagan …` in this process."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from sagan.cli import main


def sagan(*arguments: object) -> int:
    """The exit code of `sagan ARGUMENTS`."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    raise AssertionError("main() always leaves with a code")


@contextmanager
def cut_off(root: Path) -> Iterator[None]:
    """`root` as working folder, and its home as home; no network, nothing of a launcher or of an earlier run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HOME", str(root / "home"))
        for name in ("RANK", "WORLD_SIZE", "TORCH_HOME", "XDG_CACHE_HOME", "no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy"):  # nothing is downloaded, and that is found out at once
            patch.setenv(name, "http://127.0.0.1:9")
        urllib.request.install_opener(None)  # an earlier one would not know of these
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    urllib.request.install_opener(None)

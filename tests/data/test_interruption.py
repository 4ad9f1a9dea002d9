"""Preparation that is interrupted, that has company, or that is larger than memory."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sagan.data.dataset import PreparedData
from sagan.data.prepare import prepare
from sagan.utils.io import TEMPORARY

PREPARE = "import sys; from sagan.data.prepare import prepare; prepare(sys.argv[1], sys.argv[2], 32)"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "prepared"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_work_leaves_nothing_that_hurts(out: Path, signum: signal.Signals):
    """Breaks when half a preparation looks like a whole one, or what a killed run left is never cleared."""
    process = _start("shapes:1000000", out)
    _wait_for(lambda: any(path.name.startswith(TEMPORARY) for path in out.parent.glob(".*")))
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not out.exists()
    if signum == signal.SIGINT:
        assert _listing(out.parent) == []
    prepare("shapes:16", out, 32)
    assert _listing(out.parent) == ["prepared"]


def test_two_at_once_do_the_work_once(out: Path):
    """Breaks without the lock: both would write, and one would find the other's folder in its way."""
    processes = [_start("shapes:3000", out) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert sum("already prepared" in text for text in errors) == 2
    assert sum("waiting" in text for text in errors) >= 1
    assert _listing(out.parent) == ["prepared"]
    assert len(PreparedData.open(out)) == 3000


def test_memory_stays_flat(tmp_path: Path, out: Path):
    """Breaks when images wait in memory for the end: 300 MB of pixels here, in an archive of 300 kB."""
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 1024, 1024, 3), np.uint8))
    code = (
        "import resource, sys; from sagan.data.prepare import prepare\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "prepare(sys.argv[1], sys.argv[2], 32)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.npz"), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 200


def _start(source: str, out: Path) -> subprocess.Popen[str]:
    """A background job of a script ignores Ctrl-C, and so would its children; a user's command does not."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, source, str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

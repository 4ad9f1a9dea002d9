"""Fetching ahead of use."""

import subprocess
import sys
import threading
import time

import pytest

from sagan.data.dataset import Prefetcher


def test_results_come_in_order():
    """Breaks when steps are lost at either end."""
    assert list(Prefetcher(lambda step: step * step, start=3, stop=9)) == [9, 16, 25, 36, 49, 64]
    assert list(Prefetcher(lambda step: step, start=4, stop=4)) == []


def test_fetches_ahead_but_not_further_than_depth():
    """Breaks when nothing is fetched before it is asked for, or when memory fills with waiting batches."""
    fetched: list[int] = []
    with Prefetcher(lambda step: fetched.append(step) or step, start=0, stop=100, depth=3) as batches:
        _wait_for(lambda: len(fetched) == 3)
        time.sleep(0.02)
        assert len(fetched) == 3
        assert next(batches) == 0
        _wait_for(lambda: len(fetched) == 4)


def test_errors_come_in_their_turn_and_end_the_iteration():
    """Breaks when an error in the thread is lost (training would hang) or raised before the good batches."""

    def fetch(step: int) -> int:
        if step == 2:
            raise OSError("disk gone")
        return step

    batches = Prefetcher(fetch, start=0, stop=5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert list(batches) == []


def test_close_ends_the_thread():
    """Breaks when a run that is left early keeps its thread, and with it the data."""
    before = threading.active_count()
    batches = Prefetcher(lambda step: step, start=0, stop=1000)
    assert next(batches) == 0
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(batches) == []


def test_interpreter_leaves_though_nobody_closed():
    """Breaks when the thread waits for a consumer that is gone: the process would never end."""
    code = "from sagan.data.dataset import Prefetcher; b = Prefetcher(lambda s: s, 0, 10**9); print(next(b)); exit(5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (5, "0\n")


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)

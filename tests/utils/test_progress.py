"""Progress on stderr."""

import io
import sys

import pytest

from sagan.utils import progress
from sagan.utils.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_piped_work_writes_a_line_every_five_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]):
    for _ in track(range(20), 20, "reading"):
        clock[0] += 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "reading: 3/20 (0.5/s, 34.0 s left)"
    assert len(lines) == 6 + 1
    assert lines[-1] == "reading: 20 in 40.0 s (0.5/s)"


def test_short_or_failed_work_has_no_last_line(clock: list[float], capsys: pytest.CaptureFixture[str]):
    assert list(track(range(3), 3, "reading")) == [0, 1, 2]
    with pytest.raises(KeyError):
        _fail_late(clock)
    assert capsys.readouterr().err == ""


def _fail_late(clock: list[float]) -> None:
    with Progress(10, "reading"):
        clock[0] += 100
        raise KeyError


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(7, "reading") as shown:
        for _ in range(7):
            shown.advance()
    assert "7/7" in terminal.getvalue()
    assert "reading" in terminal.getvalue()

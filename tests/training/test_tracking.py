"""Training logs: log.jsonl, trackers, plain lines when piped, a live line on a terminal."""

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import lines_of, write_config

from sagan.data.dataset import PreparedData
from sagan.training.logging import RunLog, truncate_log
from sagan.training.state import _but_tensorboard
from sagan.utils.images import read_png

VALUES = {"d_loss": 1.25, "g_loss": -0.5, "d_gamma/trunk.attention.8x8": 0.125}


def tracked_run(folder: Path, data: PreparedData, tracker: str) -> Path:
    """A whole run of two steps, with scores, under a tracker."""
    changes = {"training": {"steps": 2, "trackers": [tracker]},
               "evaluate": {"every": 1, "num": 8, "metrics": ["coherence"]}}  # fmt: skip
    config = write_config(folder / "config.yaml", data, **changes)
    words = ["-m", "sagan", "train", str(config), "--out", str(folder / "run")]
    subprocess.run([sys.executable, *words], check=True)  # W&B writes the rest of its file at exit
    return folder / "run"


def test_tensorboard_gets_scalars_scores_pictures_and_settings(tmp_path: Path, data: PreparedData) -> None:
    run = tracked_run(tmp_path, data, "tensorboard")
    found: dict[str, Any] = {}
    for file in (run / "tracking").rglob("events.*"):
        events = EventAccumulator(str(file), {"images": 0, "scalars": 0}).Reload()
        found |= {name: events.Scalars(name) for name in events.Tags()["scalars"]}
        found |= {name: events.Images(name) for name in events.Tags()["images"]}
        found |= dict.fromkeys(events.summary_metadata)
    assert {"d_loss", "g_loss", "score/coherence", "samples", "attention", "_hparams_/session_start_info"} <= set(found)
    assert [(event.step, event.value) for event in found["score/coherence"]] == [
        (line["step"], pytest.approx(line["coherence"])) for line in lines_of(run / "metrics.jsonl")
    ]
    for name, file in (("samples", "00000002.png"), ("attention", "00000002-attention.png")):
        (picture,) = found[name]
        shown = np.asarray(Image.open(BytesIO(picture.encoded_image_string)))
        assert picture.step == 2
        assert np.array_equal(shown, read_png(run / "samples" / file))


def records(file: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    place, parts = 7, b""
    while place + 7 < len(file):
        if (left := 32768 - place % 32768) < 7:  # no part begins in the last bytes of a block
            place += left
        length, kind = int.from_bytes(file[place + 4 : place + 6], "little"), file[place + 6]
        parts += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_offline_gets_the_same(tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tracked_run(tmp_path, data, "wandb")
    (file,) = (run / "tracking").rglob("run-*.wandb")
    keys, settings = set(), set()
    for content in records(file.read_bytes()):
        record = Record.FromString(content)
        keys |= {item.key or item.nested_key[0] for item in record.history.item}
        settings |= {update.key for update in (*record.config.update, *record.run.config.update)}
    assert {"d_loss", "score/coherence", "samples", "attention"} <= keys
    assert {"training.steps", "optim.generator.lr"} <= settings
    assert len([*(run / "tracking").rglob("*.png")]) == 2


def test_errors_in_the_thread_of_tensorboard_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next write raises them in the main thread, which says one line."""

    class _AsyncWriterThread(threading.Thread):
        pass

    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", _but_tensorboard(shown.append))
    for kind in (_AsyncWriterThread, threading.Thread):
        thread = kind(target=lambda: 1 // 0)
        thread.start()
        thread.join()
        assert len(shown) == (kind is threading.Thread)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_log_lines(tmp_path: Path) -> None:
    tracked = []
    log = RunLog(tmp_path, 0, 10, 64, lambda values, step: tracked.append((step, values)))
    log.record(5, VALUES)
    log.record(10, VALUES)
    log.close()
    first, second = lines_of(tmp_path / "log.jsonl")
    assert (first["step"], first["kimg"], second["step"], second["kimg"]) == (5, 0.32, 10, 0.64)
    assert {name: first[name] for name in VALUES} == VALUES
    assert first["images_per_second"] > 0
    assert [step for step, _ in tracked] == [5, 10]
    assert tracked[0][1].items() >= VALUES.items()


def test_plain_lines_when_piped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 10, 64, lambda values, step: None)
    for step in range(1, 11):
        log.advance(step)
    log.record(10, VALUES)
    log.say("attention unused")
    log.close()
    out, err = capfd.readouterr()
    assert out == ""
    progress, remark = err.splitlines()
    assert progress.startswith("step 10/10  d_loss 1.250  g_loss -0.500  ")
    assert progress.endswith(" img/s  0:00:00 left")
    assert remark == "attention unused"
    assert not {"\r", "\x1b"} & set(err)


def test_a_silent_log_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "log.jsonl", '{"step": 9}\n')
    tracked = []
    log = RunLog(tmp_path, 0, 10, 64, lambda values, step: tracked.append(step), silent=True)
    log.advance(1)
    log.record(1, VALUES)
    log.say("hello")
    log.close()
    assert capfd.readouterr() == ("", "")
    assert tracked == []
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 9}\n'


def test_a_live_line_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: _drain(parent, shown), daemon=True)
    reader.start()
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        log = RunLog(tmp_path, 0, 10, 64, lambda values, step: None)
        log.advance(4)
        log.record(4, VALUES)
        log.say("attention unused: at 8x8 [still] 0")
        log.close()
        RunLog(tmp_path, 0, 10, 64, lambda values, step: None, silent=True).say("from another process")
        monkeypatch.undo()
    reader.join(timeout=10)
    text = b"".join(shown).decode()
    for part in ("4/10", "img/s", "left", "d_loss 1.250", "attention unused: at 8x8 [still] 0"):
        assert part in text, part
    assert "from another process" not in text


def _drain(descriptor: int, shown: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while block := os.read(descriptor, 4096):
            shown.append(block)


def test_resuming_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", "".join(f'{{"step": {step}, "x": {step}}}\n' for step in range(1, 8)))
    log = RunLog(tmp_path, 4, 10, 64, lambda values, step: None)
    log.record(5, {"x": 50.0})
    log.close()
    assert [(line["step"], line["x"]) for line in lines_of(path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


def test_rate_counts_from_where_this_process_began(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 1_000_000, 1_000_010, 64, lambda values, step: None)
    assert log.rate(1_000_000) == 0
    log.record(1_000_000, VALUES)  # no division by the rate of 0


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"ste', [1, 2]),
        ('{"step": 1}\n{"step": 2}', [1, 2]),
        ('{"step": 1}\n\x00\x00\x00\x00', [1]),
        ('{"step": 1}\n[]\n5\nnull\n{"x": 1}\n{"step": "a"}\n{"step": 2}\n', [1, 2]),
        ("", []),
    ],
    ids=["in-a-line", "before-its-end", "zeros", "other-json", "empty"],
)
def test_a_log_that_was_cut_can_be_written_on(tmp_path: Path, cut: str, kept: list[int]) -> None:
    path = write(tmp_path / "log.jsonl", cut)
    log = RunLog(tmp_path, 2, 10, 64, lambda values, step: None)
    log.record(3, {"x": 1.0})
    assert [line["step"] for line in lines_of(path)] == [*kept, 3]


def test_a_log_with_nothing_to_drop_is_not_written(tmp_path: Path) -> None:
    truncate_log(tmp_path / "log.jsonl", 0)
    assert list(tmp_path.iterdir()) == []
    path = write(tmp_path / "log.jsonl", '{"step": 1}\n{"step": 2}\n')
    before = path.stat()
    truncate_log(path, 2)
    assert path.stat().st_ino == before.st_ino

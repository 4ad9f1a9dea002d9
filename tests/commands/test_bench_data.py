"""`sagan bench data`: rates, waiting and memory, and that they are of what they say."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import sagan

from sagan.commands import step_variants
from sagan.commands.data_variants import (
    decoded,
    growth_while_reading,
    make_array,
    make_pictures,
    seconds_of_feeding,
    seconds_of_preparing,
)
from sagan.config import load_config
from sagan.data.dataset import PreparedData

SMALL = ["generator.channels=4", "discriminator.channels=4", "training.batch_size=4", "optim.d_steps=2"]


def test_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the object lacks a ratio, or one is upside down."""
    changes = [f"--set={setting}" for setting in SMALL]
    assert sagan("bench", "data", *changes, "--images", 16, "--steps", 2, "--array-mib", 8, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"ratio_prepare", "ratio_prepare_processor", "ratio_wait", "ratio_resident"}
    assert {key for key in found if key.startswith("ratio")} == expected
    assert found["ratio_wait"] == pytest.approx(found["seconds_wait"] / (found["seconds_wait"] + found["seconds_step"]))
    assert 0 < found["ratio_wait"] < 1
    assert 0 < found["ratio_prepare_processor"] < 2


def test_prepare_does_what_the_plain_decoder_does(tmp_path: Path) -> None:
    """Breaks when the two are timed on other work: the same pictures, the same pixels but for what JPEG drafts."""
    seconds, data = seconds_of_preparing(tmp_path, 8, 32, 1)
    plain = [decoded(path, 32).astype(int) for path in make_pictures(tmp_path / "pictures", 8)]
    apart = [
        np.abs(np.asarray(image).astype(int) - other).max() for image, other in zip(data.images, plain, strict=True)
    ]
    assert max(apart[::2]) == 0
    assert max(apart) < 30
    assert all(took.wall > 0 and took.processor > 0 for times in seconds.values() for took in times)


def test_a_slow_reader_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when waiting for data is counted as work, so that no reader could be too slow."""
    data = PreparedData.open(make_array(tmp_path / "data", 1, 32))
    gather = PreparedData.gather

    def slowly(self: PreparedData, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.5)
        return gather(self, indices)

    monkeypatch.setattr(PreparedData, "gather", slowly)
    monkeypatch.setattr(step_variants, "stepper", lambda *_: dict)  # no work that reading could hide behind
    config = load_config(None, [*SMALL, "optim.d_steps=1", "data.num_classes=0", "generator.attention={}"])
    step, wait = seconds_of_feeding(config, data, 3)
    assert wait >= 0.45
    assert step < wait / 3


def test_reading_takes_the_pages_of_the_array_alone(tmp_path: Path) -> None:
    """Breaks when reading copies the array into memory, or counts its pages as copies, or does not read all of it."""
    grown = growth_while_reading(tmp_path, 64, 128)
    if grown is None:
        pytest.skip("needs /proc")
    assert grown.anonymous_mib < 32
    assert 50 < grown.file_mib < 80


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 128])
def test_data_feed_the_step(side: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when prepared arrays take 5 % of the time of a step, or reading a large array takes memory."""
    changes = [f"--set=data.resolution={side}", "--set=generator.channels=16", "--set=discriminator.channels=16",
               "--set=training.batch_size=8", "--set=data.num_classes=10"]  # fmt: skip
    widths = ["--set=discriminator.widths=[1,2,4,8,16,16]"] if side == 128 else []
    assert sagan("bench", "data", *changes, *widths, "--images", 32, "--steps", 4, "--array-mib", 512, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio_wait"] < 0.05
    assert found["ratio_resident"] < 0.05

"""Files of version 0.1.0 as of commit 2457646, in tests/data/old, still load and resume.

`data` is prepared data, `run` a run of 4 steps on it, `expected` the snapshot after that version resumed it to step 6,
`images` its samples of seeds 0 to 3 and `statistics.npz` the statistics of 50 features in 8 dimensions.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import cut_off, sagan
from PIL import Image
from safetensors.torch import load_file

from sagan.data.dataset import PreparedData
from sagan.evaluation.fid import load_statistics
from sagan.runs.snapshot import load_snapshot

OLD = Path(__file__).parents[1] / "data" / "old"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.usefixtures("alone")
def test_a_run_resumes(work: Path) -> None:
    """The resumed run ends with the weights that the old version reached."""
    with cut_off(work):
        assert sagan("train", "run/config.yaml", "--out", "run", "--set", "training.steps=6") == 0
    found, expected = (
        json.loads((folder / "config.json").read_text())
        for folder in (work / "run/snapshots/00000006", OLD / "expected")
    )
    assert found["generator"].items() >= expected["generator"].items()  # and settings that came later
    assert found | {"generator": None} == expected | {"generator": None}
    found, expected = (
        load_file(folder / "model.safetensors") for folder in (work / "run/snapshots/00000006", OLD / "expected")
    )
    start = load_file(OLD / "run/snapshots/00000004/model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        # The gradient of a bias before a batch norm is rounding noise, which Adam turns into full steps. It differs
        # between processors, and so do the running means.
        noise = name.endswith((".running_mean", "conv1.bias", "conv2.bias", "shortcut.bias"))
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-3 if noise else 1e-5)
    assert max((expected[name] - start[name]).abs().max() for name in expected) > 1e-3
    steps = [json.loads(line).get("step") for line in (work / "run/log.jsonl").read_text().splitlines()]
    assert [step for step in steps if step] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("alone")
def test_a_snapshot_gives_the_same_images(work: Path) -> None:
    assert load_snapshot(work / "run/snapshots/00000004").resolution == 32
    with cut_off(work):
        assert sagan("sample", "run", "--out", "new", "--num", "4") == 0
    for seed in range(4):
        name = f"seed{seed:08d}.png"
        found, expected = (np.asarray(Image.open(folder / name), int) for folder in (work / "new", OLD / "images"))
        assert np.abs(found - expected).max() <= 1


@pytest.mark.usefixtures("alone")
def test_attention_of_a_checkpoint_is_shown(work: Path) -> None:
    with cut_off(work):
        assert sagan("attend", "run", "--out", "attention", "--seeds", "0", "--network", "both") == 0
    assert (work / "attention/attention.npz").is_file()


def test_prepared_data_opens(work: Path) -> None:
    data = PreparedData.open(work / "data")
    assert (len(data), data.manifest.class_names) == (12, ("cat", "dog"))


def test_statistics_load() -> None:
    features = np.random.default_rng(0).normal(1, 1, (50, 8))
    statistics, about = load_statistics(OLD / "statistics.npz")
    assert (statistics.count, about["size"]) == (50, [32, 32])
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-12, atol=1e-12)

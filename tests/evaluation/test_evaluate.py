"""`sagan evaluate` and `sagan stats`: the same scores for any batch size, number of processes and kind of source."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from command_line import sagan
from small_generator import small_generator
from standin import register_standin
from tiny import write_config
from two import in_two

from sagan.data.dataset import PreparedData
from sagan.data.shapes import CLASSES
from sagan.runs.snapshot import save_snapshot
from sagan.utils.images import read_png, save_png

STANDIN = register_standin()
METRICS = "fid,kid,is,precision,recall,density,coverage,intra_fid,coherence"
Evaluate = Callable[..., dict]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache for every test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two snapshots of a generator of shapes."""
    folder = tmp_path_factory.mktemp("run")
    for step, channels in ((1, 4), (2, 8)):
        generator = small_generator(channels=channels)
        generator.class_names = CLASSES
        save_snapshot(generator, folder / "snapshots" / f"{step:08d}")
    return folder


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    def evaluated(source: Path, reference: Path | None, *more: object) -> dict:
        """The JSON object on stdout."""
        against = [] if reference is None else ["--reference", reference, "--backbone", STANDIN]
        capsys.readouterr()
        assert sagan("evaluate", source, "--json", *against, *more) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return evaluated


def test_scores_and_protocol_are_appended_to_the_run(run: Path, data: PreparedData, evaluate: Evaluate) -> None:
    found = evaluate(run, data.folder, "--num", 30, "--metrics", METRICS)
    assert set(METRICS.split(",")) <= found.keys()
    expected = {
        "num": 30, "seeds": "0-29", "labels": "reference", "reference_hash": data.manifest.content_hash,
        "reference_count": len(data), "backbone": STANDIN, "weights": "averaged", "batch_norm": "running",
    }  # fmt: skip
    assert expected.items() <= found["protocol"].items()
    assert set(found["per_class"]) == set(CLASSES)
    assert any("30 samples" in warning for warning in found["warnings"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) == found
    assert found["step"] == 2


def test_scores_do_not_depend_on_batches_and_processes(
    run: Path, data: PreparedData, tmp_path: Path, evaluate: Evaluate
) -> None:
    """29 samples are 8 batches of 4, the last of which is smaller, and is of the second process."""
    source, options = run / "snapshots" / "00000002", ["--num", 29, "--metrics", METRICS]
    expected = evaluate(source, data.folder, *options, "--batch-size", 29)
    approximately = {k: pytest.approx(v, rel=1e-3, abs=1e-6) for k, v in expected.items() if isinstance(v, float)}
    approximately |= {"per_class": pytest.approx(expected["per_class"], rel=1e-3)}
    assert evaluate(source, data.folder, *options, "--batch-size", 7) == expected | approximately

    def share(rank: int) -> None:
        arguments = ["--reference", data.folder, "--backbone", STANDIN, *options, "--batch-size", 4]
        assert sagan("evaluate", source, *arguments, "--out", tmp_path / "two.json") == 0

    in_two(share, tmp_path)
    assert json.loads((tmp_path / "two.json").read_text()) == expected | approximately


def test_scores_of_files_are_those_of_torch_fidelity(run: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    for step, folder in ((2, tmp_path / "a"), (1, tmp_path / "b")):
        assert sagan("sample", run / "snapshots" / f"{step:08d}", "--out", folder, "--num", 40) == 0
    found = evaluate(tmp_path / "a", tmp_path / "b", "--metrics", "fid,is,precision,recall")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), feature_extractor=STANDIN, fid=True, isc=True, prc=True,
        cuda=False, verbose=False, cache=False,
    )  # fmt: skip
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-3)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-3)
    assert found["protocol"]["images"] == "files"
    assert abs(evaluate(tmp_path / "a", tmp_path / "a", "--metrics", "fid")["fid"]) < 1e-6


def test_statistics_files_give_the_same_fid(run: Path, data: PreparedData, tmp_path: Path, evaluate: Evaluate) -> None:
    assert sagan("stats", data.folder, "--out", tmp_path / "s.npz", "--backbone", STANDIN) == 0
    one = evaluate(run, data.folder, "--num", 20, "--metrics", "fid", "--labels", "uniform")
    two = evaluate(run, tmp_path / "s.npz", "--num", 20, "--metrics", "fid")
    assert two["fid"] == pytest.approx(one["fid"], rel=1e-6)
    assert two["protocol"] == one["protocol"]


def test_the_cache_is_verified(run: Path, data: PreparedData, home: Path, evaluate: Evaluate) -> None:
    options = [run / "snapshots" / "00000002", data.folder, "--num", 20, "--metrics", "fid,kid"]
    one = evaluate(*options)
    (entry,) = (home / ".cache" / "sagan" / "features").iterdir()
    names = {path.name for path in entry.iterdir()}
    assert names == {"statistics.npz", "features.npy", "features.json"}
    before = (entry / "statistics.npz").stat().st_mtime_ns
    assert evaluate(*options) == one
    assert (entry / "statistics.npz").stat().st_mtime_ns == before
    for name in names:
        content = bytearray((entry / name).read_bytes())
        content[len(content) // 2 + 3] ^= 255  # of a float: sign and exponent
        (entry / name).write_bytes(content)
        assert evaluate(*options) == one, name


def test_repeats_use_other_seeds(run: Path, data: PreparedData, evaluate: Evaluate) -> None:
    found = evaluate(run, data.folder, "--num", 20, "--metrics", "fid", "--repeats", 3)
    assert found["spread"]["fid"] > 0
    assert found["protocol"]["seeds"] == "0-19,20-39,40-59"


def test_shapes_need_neither_reference_nor_weights(
    run: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(run, None, "--num", 12)
    assert {"coherence", "two_objects", "hue_agreement", "shape_agreement", "label_agreement"} <= found.keys()
    assert sagan("evaluate", run, "--num", 12) == 0
    assert "hue_agreement" in capsys.readouterr().out


def test_lpips_metrics(data: PreparedData, tmp_path: Path, evaluate: Evaluate) -> None:
    """Every image of the reference is its own nearest neighbor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = torchvision.models.alexnet().features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "alex.pth")
    options = ["--lpips-weights", tmp_path / "alex.pth", "--out", tmp_path / "result.json"]
    found = evaluate(data.folder, data.folder, "--metrics", "lpips_diversity,nearest", *options)
    assert found["lpips_diversity"] > 0
    assert found["lpips_diversity_within"] > 0
    assert found["nearest"] < 1e-6
    assert read_png(tmp_path / "result-nearest.png").shape[0] > 500


def test_labels_follow_the_reference(run: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "r.npz", images=images, labels=np.repeat([0, 1, 2, 3], [31, 3, 3, 3]))
    by_reference, uniform = (
        evaluate(run, tmp_path / "r.npz", "--num", 40, "--metrics", "fid", "--labels", labels)
        for labels in ("reference", "uniform")
    )
    assert (by_reference["protocol"]["labels"], uniform["protocol"]["labels"]) == ("reference", "uniform")
    assert by_reference["fid"] != uniform["fid"]


@pytest.mark.usefixtures("alone")
def test_runs_are_compared_with_their_training_data(data: PreparedData, tmp_path: Path, evaluate: Evaluate) -> None:
    """With its settings of the run, here skip_bad."""
    for i in range(12):
        save_png(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", data.images[i])
    (tmp_path / "in" / "a" / "bad.png").write_text("no image")
    config = write_config(
        tmp_path / "c.yaml", data, data={"source": str(tmp_path / "in"), "skip_bad": True},
        training={"steps": 1, "batch_size": 4},
    )  # fmt: skip
    assert sagan("train", config, "--out", tmp_path / "run") == 0
    command = [tmp_path / "run", None, "--metrics", "fid", "--backbone", STANDIN, "--num", 8]
    assert evaluate(*command)["protocol"]["reference_count"] == 12
    assert len(evaluate(*command, "--modes")["modes"]) == 4

"""`sagan evaluate` and `sagan stats`: the same scores whatever the batch, the processes and the way to the images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_fidelity
from command_line import sagan
from small_generator import small_generator
from standin import register_standin
from tiny import write_config

from sagan.data.dataset import PreparedData
from sagan.data.shapes import CLASSES
from sagan.models.generator import Generator
from sagan.runs.snapshot import save_snapshot
from sagan.utils.images import read_png, save_png

TESTS = Path(__file__).parents[1]
STANDIN = register_standin()
METRICS = "fid,kid,is,precision,recall,density,coverage,intra_fid,coherence"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two snapshots of a generator that was trained on shapes, as far as one can see."""
    folder = tmp_path_factory.mktemp("run")
    for step, channels in ((1, 4), (2, 8)):
        generator: Generator = small_generator(channels=channels)
        generator.class_names = CLASSES
        save_snapshot(generator, folder / "snapshots" / f"{step:08d}")
    return folder


def evaluate(capsys: pytest.CaptureFixture[str], source: Path, reference: Path | None = None, *more: object) -> dict:
    """The one object on stdout."""
    against = [] if reference is None else ["--reference", reference, "--backbone", STANDIN]
    assert sagan("evaluate", source, "--json", *against, *more) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_card_says_scores_and_protocol_and_is_kept(
    run: Path, data: PreparedData, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a metric is lost, the protocol leaves out what decides it, or the run does not keep the card."""
    found = evaluate(capsys, run, data.folder, "--num", 30, "--metrics", METRICS)
    assert set(METRICS.split(",")) <= found.keys()
    protocol = found["protocol"]
    assert (protocol["num"], protocol["seeds"], protocol["labels"]) == (30, "0-29", "reference")
    assert (protocol["reference_hash"], protocol["reference_count"]) == (data.manifest.content_hash, len(data))
    assert (protocol["backbone"], protocol["weights"], protocol["batch_norm"]) == (STANDIN, "averaged", "running")
    assert set(found["per_class"]) == set(CLASSES)
    assert any("30 samples" in warning for warning in found["warnings"])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == found
    assert found["step"] == 2


@pytest.mark.parametrize("batch", [7, 64])
def test_the_batch_size_changes_nothing(
    run: Path, data: PreparedData, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    """Breaks when samples depend on the batch, or a last, smaller batch is lost or padded."""
    source = run / "snapshots" / "00000002"
    one = evaluate(capsys, source, data.folder, "--num", 30, "--metrics", METRICS, "--batch-size", 30)
    assert evaluate(capsys, source, data.folder, "--num", 30, "--metrics", METRICS, "--batch-size", batch) == {
        name: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value for name, value in one.items()
    } | {"per_class": pytest.approx(one["per_class"], rel=1e-3)}


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_change_nothing(
    run: Path, data: PreparedData, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], processes: int
) -> None:
    """Breaks when a process scores another share than its own, an image is scored twice, or sums are not put together.

    29 samples do not divide by 2, nor by the batch of 4: with 8 batches one process has the short one.
    """
    source, out = run / "snapshots" / "00000002", tmp_path / "card.json"
    arguments = [
        "evaluate", source, "--reference", data.folder, "--backbone", STANDIN, "--num", 29, "--metrics", METRICS,
        "--batch-size", 4, "--out", out,
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, "--"]
    done = subprocess.run(
        [*map(str, launcher), str(TESTS / "standin_sagan.py"), *map(str, arguments)], capture_output=True, text=True,
        timeout=200, env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = evaluate(capsys, source, data.folder, "--num", 29, "--metrics", METRICS)
    found = json.loads(out.read_text())
    assert found["protocol"] == expected["protocol"]
    for name in METRICS.split(","):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_scores_of_written_images_are_those_of_torch_fidelity(
    run: Path, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when our FID, IS, precision or recall of the same files is not torch-fidelity's, or `sample` and
    `evaluate` draw different images of a seed."""
    source = run / "snapshots" / "00000002"
    assert sagan("sample", source, "--out", tmp_path / "png", "--num", 40) == 0
    reference = tmp_path / "reference"
    assert sagan("sample", run / "snapshots" / "00000001", "--out", reference, "--num", 40) == 0
    found = evaluate(
        capsys, tmp_path / "png", reference, "--metrics", "fid,is,precision,recall", "--out", tmp_path / "c.json"
    )
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "png"), input2=str(reference), feature_extractor=STANDIN, fid=True, isc=True, prc=True,
        cuda=False, verbose=False, cache=False,
    )  # fmt: skip
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-3)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-3)
    assert found["protocol"]["images"] == "files"


def test_a_set_against_itself_has_distance_zero(data: PreparedData, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when samples and reference are read or summed differently."""
    assert abs(evaluate(capsys, data.folder, data.folder, "--metrics", "fid")["fid"]) < 1e-6


def test_statistics_of_a_file_give_the_same_fid(
    run: Path, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when the file holds other statistics than the data, or the protocol forgets what they are of."""
    assert sagan("stats", data.folder, "--out", tmp_path / "s.npz", "--backbone", STANDIN) == 0
    capsys.readouterr()
    source = run / "snapshots" / "00000002"
    one = evaluate(capsys, source, data.folder, "--num", 20, "--metrics", "fid", "--labels", "uniform")
    two = evaluate(capsys, source, tmp_path / "s.npz", "--num", 20, "--metrics", "fid")
    assert two["fid"] == pytest.approx(one["fid"], rel=1e-6)
    assert two["protocol"] == one["protocol"]


def test_what_is_cached_is_verified(
    run: Path, data: PreparedData, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a damaged cache is believed, or features of the reference are computed again for nothing."""
    source = run / "snapshots" / "00000002"
    one = evaluate(capsys, source, data.folder, "--num", 20, "--metrics", "fid,kid")
    (entry,) = (home / ".cache" / "sagan" / "features").iterdir()
    names = {path.name for path in entry.iterdir()}
    assert names == {"statistics.npz", "features.npy", "features.json"}
    before = (entry / "statistics.npz").stat().st_mtime_ns
    assert evaluate(capsys, source, data.folder, "--num", 20, "--metrics", "fid,kid") == one
    assert (entry / "statistics.npz").stat().st_mtime_ns == before
    for name in names:
        content = bytearray((entry / name).read_bytes())
        content[len(content) // 2] ^= 255
        (entry / name).write_bytes(content)
        assert evaluate(capsys, source, data.folder, "--num", 20, "--metrics", "fid,kid") == one, name


def test_repeats_draw_other_seeds(run: Path, data: PreparedData, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a repeat draws the same samples again (spread 0)."""
    found = evaluate(
        capsys, run / "snapshots" / "00000002", data.folder, "--num", 20, "--metrics", "fid", "--repeats", 3
    )
    assert found["spread"]["fid"] > 0
    assert found["protocol"]["seeds"] == "0-19,20-39,40-59"


def test_shapes_need_neither_reference_nor_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the demo's evaluation asks for weights or a reference."""
    found = evaluate(capsys, run / "snapshots" / "00000001", None, "--num", 12)
    assert {"coherence", "two_objects", "hue_agreement", "shape_agreement", "label_agreement"} <= found.keys()
    assert sagan("evaluate", run / "snapshots" / "00000001", "--num", 12) == 0
    assert "hue_agreement" in capsys.readouterr().out


def test_nearest_and_diversity_are_made_and_shown(
    run: Path, data: PreparedData, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when the sheet is not written beside the card, or an image of the reference is not its own nearest."""
    found = evaluate(
        capsys, data.folder, data.folder, "--metrics", "lpips_diversity,nearest", "--lpips-weights", trunk, "--out",
        tmp_path / "card.json",
    )  # fmt: skip
    assert found["lpips_diversity"] > 0
    assert found["lpips_diversity_within"] > 0
    assert found["nearest"] < 1e-6
    assert read_png(tmp_path / "card-nearest.png").shape[0] > 500


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AlexNet trunk with seeded weights under torchvision's names."""
    import torch
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torchvision.models.alexnet().features.state_dict()
    path = tmp_path_factory.mktemp("weights") / "alex.pth"
    torch.save({f"features.{name}": tensor for name, tensor in state.items()}, path)
    return path


def test_labels_follow_the_reference(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when unbalanced data are compared with balanced samples."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "r.npz", images=images, labels=np.repeat([0, 1, 2, 3], [31, 3, 3, 3]))
    source = run / "snapshots" / "00000002"
    by_reference = evaluate(capsys, source, tmp_path / "r.npz", "--num", 40, "--metrics", "fid")
    uniform = evaluate(capsys, source, tmp_path / "r.npz", "--num", 40, "--metrics", "fid", "--labels", "uniform")
    assert (by_reference["protocol"]["labels"], uniform["protocol"]["labels"]) == ("reference", "uniform")
    assert by_reference["fid"] != uniform["fid"]


def test_a_reference_with_more_classes_is_not_taken_for_balanced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when uniform labels pass for the reference's in the protocol."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "r.npz", images=images, labels=np.arange(40) % 5)
    command = ["evaluate", run / "snapshots" / "00000002", "--reference", tmp_path / "r.npz", "--backbone", STANDIN]
    assert sagan(*command, "--num", 20) == 2
    assert "the reference has 5 classes, the generator 4; use --labels uniform" in capsys.readouterr().err
    assert sagan(*command, "--num", 20, "--labels", "uniform", "--metrics", "fid") == 0


@pytest.mark.usefixtures("alone")
def test_a_run_is_compared_with_the_data_it_was_trained_on(
    data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when the run's own settings of its data, here skip_bad, are not those of the reference."""
    for i in range(12):
        save_png(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", data.images[i])
    (tmp_path / "in" / "a" / "bad.png").write_text("no image")
    config = write_config(
        tmp_path / "c.yaml", data, data={"source": str(tmp_path / "in"), "skip_bad": True},
        training={"steps": 1, "batch_size": 4},
    )  # fmt: skip
    assert sagan("train", config, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    found = evaluate(capsys, tmp_path / "run", None, "--metrics", "fid", "--backbone", STANDIN, "--num", 8)
    assert found["protocol"]["reference_count"] == 12

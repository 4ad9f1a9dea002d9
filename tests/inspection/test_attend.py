"""`sagan attend`: files, numbers, options, and memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import sagan
from PIL import Image
from tiny import write_config

from sagan.config.load import load_config
from sagan.data.dataset import PreparedData
from sagan.data.shapes import CLASSES
from sagan.inspection import command
from sagan.models.generator import build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot
from sagan.utils.images import save_png


def saved(folder: Path, class_names: tuple[str, ...], gamma: float) -> Path:
    config = load_config(None, ["generator.channels=4"])
    generator = remove_spectral_norm(build_generator(config, len(class_names), class_names))
    for module in generator.attention.values():
        module.gamma.data.fill_(gamma)  # type: ignore[union-attr]
    save_snapshot(generator, folder)
    return folder


def attend(source: Path, out: Path, options: str) -> None:
    assert sagan("attend", source, "--out", out, *options.split()) == 0


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "COHERENCE_SAMPLES", 16)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("attend") / "snapshot", CLASSES, 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: PreparedData) -> Path:
    """Two real steps with a snapshot of each."""
    folder = tmp_path_factory.mktemp("attended")
    config = write_config(folder / "c.yaml", data, training={"steps": 2, "batch_size": 4, "snapshot_every": 1})
    assert sagan("train", config, "--out", folder / "run") == 0
    return folder / "run"


def test_figure_arrays_and_summary_of_the_seeds(snapshot: Path, tmp_path: Path, capsys) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        attend(snapshot, out, "--seeds 2,5-6 --points 3")
    out = tmp_path / "a"
    text = capsys.readouterr().out
    assert text.startswith("attention at 16x16 is used: gamma 0.5, ")
    assert "no query point lies on a clear object" in text  # an untrained generator draws none
    assert str(out / "attention.png") in text
    arrays = arrays_of(out / "attention.npz")
    assert arrays["seeds"].tolist() == [2, 5, 6]
    assert arrays["labels"].tolist() == [2, 1, 2]
    assert arrays["maps/attention.16x16"].shape == (3, 1, 3, 8, 8)
    with Image.open(out / "attention.png") as figure:
        assert figure.width > 4 * 128
        assert figure.height > 3 * 128
    assert sorted(path.name for path in out.iterdir()) == ["ablation.png", "attention.npz", "attention.png"]
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_every_seed_in_each_class_at_given_points(snapshot: Path, tmp_path: Path, capsys) -> None:
    attend(snapshot, tmp_path, "--seeds 0-1 --classes cross,0 --at 3,30;31,0 --json")
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 4
    assert report["attention"]["attention.16x16"]["gamma"] == 0.5
    assert report["ablation"]["grey_levels"] > 0
    assert {"coherence", "two_objects"} <= report["ablation"]["with"].keys()
    arrays = arrays_of(tmp_path / "attention.npz")
    assert arrays["seeds"].tolist() == [0, 0, 1, 1]
    assert arrays["labels"].tolist() == [CLASSES.index("cross"), 0] * 2
    assert arrays["point_pixels"].tolist() == [[[3, 30], [31, 0]]] * 4


def test_an_unconditional_generator_with_gamma_zero(tmp_path: Path, capsys) -> None:
    attend(saved(tmp_path / "snapshot", (), 0.0), tmp_path / "out", "--seeds 0 --points grid")
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "attention at 16x16 is unused: gamma is still 0"
    assert "changes the images by 0.0/255" in text
    assert "object" not in text  # partners are for shapes
    assert arrays_of(tmp_path / "out" / "attention.npz")["points"].shape == (1, 9, 2)


@pytest.mark.usefixtures("alone")
def test_the_discriminator_is_shown_on_real_and_generated_images(run: Path, data: PreparedData, tmp_path: Path) -> None:
    attend(run, tmp_path, "--seeds 0-2 --points 2 --network both")
    own, fakes, reals = (
        arrays_of(tmp_path / f"{name}.npz") for name in ("attention", "discriminator-generated", "discriminator-real")
    )
    assert np.array_equal(own["images"], fakes["images"])
    assert np.array_equal(own["labels"], fakes["labels"])
    assert fakes["layers"].tolist() == ["trunk.attention.8x8"]
    np.testing.assert_allclose(fakes["maps/trunk.attention.8x8"].sum((-2, -1)), 1, atol=1e-5)
    places = [int(np.flatnonzero((data.images == image).all((1, 2, 3)))[0]) for image in reals["images"]]
    assert data.labels[places].tolist() == reals["labels"].tolist()


@pytest.mark.usefixtures("alone")
def test_the_discriminator_of_a_checkpoint_on_a_folder(run: Path, data: PreparedData, tmp_path: Path) -> None:
    for i in range(6):
        save_png(tmp_path / "in" / CLASSES[data.labels[i]] / f"{i}.png", data.images[i])
    options = f"--seeds 0-5 --points 1 --network discriminator --images {tmp_path / 'in'}"
    attend(run / "checkpoints" / "00000002", tmp_path / "out", options)
    found = arrays_of(tmp_path / "out" / "discriminator-real.npz")
    own = {image.tobytes(): label for image, label in zip(data.images[:6], data.labels[:6], strict=True)}
    assert [own[image.tobytes()] for image in found["images"]] == found["labels"].tolist()
    assert not (tmp_path / "out" / "attention.png").exists()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("kind", "frames"), [("snapshots", 2), ("path", 48)])
def test_an_animation_has_a_frame_per_snapshot_or_point(run: Path, tmp_path: Path, kind: str, frames: int) -> None:
    attend(run, tmp_path, f"--seeds 0 --points 2 --tile 64 --animate {kind}")
    with Image.open(tmp_path / f"attention-{kind}.gif") as animation:
        assert animation.n_frames == frames  # no two frames were merged as equal


def test_an_animation_can_be_an_mp4(run: Path, tmp_path: Path) -> None:
    attend(run, tmp_path, "--seeds 0 --points 2 --tile 64 --animate snapshots --mp4")
    assert (tmp_path / "attention-snapshots.mp4").read_bytes()[4:8] == b"ftyp"
    assert not (tmp_path / "attention-snapshots.gif").exists()


MEASURE = """
import resource, sys
from pathlib import Path
from sagan.config.load import load_config
from sagan.inspection.command import attend_cli
from sagan.models.generator import remove_spectral_norm, build_generator
from sagan.runs.snapshot import save_snapshot

out = Path(sys.argv[1])
config = load_config(None, ["data.resolution=256", "generator.channels=8", "generator.attention={256: self_attention}"])
save_snapshot(remove_spectral_norm(build_generator(config, 0)), out / "snapshot")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend_cli([str(out / "snapshot"), "--out", str(out / "attention"), "--seeds", "0-1"], standalone_mode=False)
print("MIB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_256_map_stays_under_a_gigabyte(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split("MIB")[-1]) < 1024
    assert (tmp_path / "attention" / "attention.png").is_file()

"""`data.channels: 1`: from grayscale files to samples, scores, attention and ONNX."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import sagan
from PIL import Image
from standin import register_standin
from tiny import write_config

from sagan.data.dataset import PreparedData
from sagan.evaluation.features import from_prepared
from sagan.models.discriminator import Discriminator
from sagan.runs.snapshot import load_snapshot

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def photos(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of grayscale PNGs, one of them stored as RGB."""
    folder = tmp_path_factory.mktemp("gray") / "photos"
    for name, images in zip("ab", pixels, strict=True):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image).convert("L" if name == "a" else "RGB").save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def gray(photos: Path) -> PreparedData:
    assert sagan("prepare", photos, "--channels", "1", "--out", photos.parent / "one") == 0
    return PreparedData.open(photos.parent / "one")


def test_pixels_are_kept(gray: PreparedData, pixels: np.ndarray, photos: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(gray.images[..., 0], pixels.reshape(-1, 32, 32))
    assert json.loads((gray.folder / "report.json").read_text())["converted"] == {}
    assert sagan("prepare", photos, "--out", tmp_path / "three") == 0
    three = from_prepared(PreparedData.open(tmp_path / "three")).read(np.arange(16))
    assert torch.equal(from_prepared(gray).read(np.arange(16)), three)
    assert gray.manifest.fingerprint != PreparedData.open(tmp_path / "three").manifest.fingerprint


def test_colors_become_luminance_and_are_counted(tmp_path: Path) -> None:
    for index, color in enumerate([(255, 0, 0), (0, 255, 0), (9, 9, 9)]):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), color).save(tmp_path / "in" / f"{index}.png")
    assert sagan("prepare", tmp_path / "in", "--channels", "1", "--out", tmp_path / "out") == 0
    assert PreparedData.open(tmp_path / "out").images[:, 0, 0, 0].tolist() == [76, 150, 9]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["converted"]["color"] == {"count": 2, "examples": ["0.png", "1.png"]}


@pytest.mark.parametrize("frontend", [None, "zoom", "coarse_to_fine"])
def test_discriminators_of_one_channel(frontend: str | None) -> None:
    from sagan.config.load import load_config

    settings = [] if frontend is None else [f"discriminator.frontend={{name: {frontend}}}"]
    config = load_config(None, ["discriminator.channels=4", *settings])
    discriminator = Discriminator(config.discriminator, 32, 0, 1)
    logits = discriminator(torch.randn(2, 1, 32, 32), None, torch.tensor([True, False])).logits
    assert torch.isfinite(logits).all()


def test_a_run_of_one_channel(
    gray: PreparedData, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path / "config.yaml", gray, data={"channels": 1}, training={"steps": 2}, loss={"r1": 1.0},
        augment={"policy": ["color", "translation", "cutout"]},
    )  # fmt: skip
    run = tmp_path / "run"
    assert sagan("train", config, "--out", run) == 0
    generator = load_snapshot(run)
    assert generator(torch.randn(2, generator.z_dim), torch.tensor([0, 1])).shape == (2, 1, 32, 32)
    assert sagan("sample", run, "--out", tmp_path / "samples", "--num", "4", "--grid") == 0
    files = sorted((tmp_path / "samples").glob("seed*.png"))
    assert [Image.open(file).mode for file in files] == ["L"] * 4
    assert Image.open(tmp_path / "samples" / "grid.png").mode == "RGB"
    options = ["--metrics", "fid", "--backbone", register_standin(), "--num", "8", "--json"]
    capsys.readouterr()
    assert sagan("evaluate", run, *options) == 0
    of_run = json.loads(capsys.readouterr().out)
    assert sagan("evaluate", tmp_path / "samples", "--reference", gray.folder, *options[:4], "--json") == 0
    assert sagan("evaluate", run, "--reference", photos, *options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fid"] == pytest.approx(of_run["fid"], rel=1e-6)
    for network, real in (("generator", []), ("discriminator", []), ("discriminator", ["--images", photos])):
        out = tmp_path / f"attention-{network}-{len(real)}"
        assert sagan("attend", run, "--out", out, "--network", network, "--seeds", "0-1", *real) == 0
    assert sagan("export", run, "--out", tmp_path / "generator.onnx") == 0


def test_another_number_of_channels_is_refused(
    gray: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", gray)
    assert sagan("train", config, "--out", tmp_path / "run") == 2
    assert "prepared with --channels 1, but data.channels is 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

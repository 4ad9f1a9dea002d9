"""BigGAN's conditioning (arXiv:1809.11096) wherever a generator is used: snapshots, the Hub, sampling, ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_generator import small_generator

from sagan.models.generator import Generator
from sagan.runs.snapshot import load_snapshot, save_snapshot
from sagan.sampling import export
from sagan.sampling.sampler import default_labels, latents
from sagan.sampling.writer import sample_cli
from sagan.utils.images import read_png

HIERARCHICAL = ("generator.hierarchical=true", "generator.z_dim=20")
BIGGAN = (*HIERARCHICAL, "generator.class_norm=shared", "generator.shared_dim=6")
each_form = pytest.mark.parametrize(
    ("settings", "classes"),
    [(BIGGAN, 4), (BIGGAN[2:], 4), ((*HIERARCHICAL, "data.num_classes=0"), 0)],
    ids=["biggan", "shared", "no-classes"],
)


@each_form
def test_snapshot_and_hub(settings: tuple[str, ...], classes: int, tmp_path: Path) -> None:
    generator = small_generator(*settings, num_classes=classes, channels=4)
    save_snapshot(generator, tmp_path / "snapshot")
    load_snapshot(tmp_path / "snapshot").save_pretrained(tmp_path / "hub")
    found = Generator.from_pretrained(tmp_path / "hub")
    z, labels = latents([0, 1, 2], generator.z_dim), default_labels(range(3), classes)
    assert torch.equal(found(z, labels), generator(z, labels))
    assert (tmp_path / "snapshot/config.json").read_bytes() == (tmp_path / "hub/config.json").read_bytes()


@each_form
def test_samples_and_interpolations(settings: tuple[str, ...], classes: int, tmp_path: Path) -> None:
    """An interpolation starts and ends at the samples of its seeds and classes."""
    save_snapshot(small_generator(*settings, num_classes=classes, channels=4), tmp_path / "snapshot")
    given = ["--classes", "1,2"] if classes else []
    for options in (["--interpolate", "1", "6", "--frames", "8", *given], ["--seeds", "1,6", *given]):
        arguments = [str(tmp_path / "snapshot"), "--out", str(tmp_path), "--device", "cpu", *options]
        sample_cli(arguments, standalone_mode=False)
    (strip,) = tmp_path.glob("interpolation*.png")
    start, end = ("_class1.png", "_class2.png") if classes else (".png", ".png")
    frames = read_png(strip)[2:34]
    assert np.array_equal(frames[:, 2:34], read_png(tmp_path / f"seed00000001{start}"))
    assert np.array_equal(frames[:, 7 * 34 + 2 : 8 * 34], read_png(tmp_path / f"seed00000006{end}"))


@pytest.mark.slow
@each_form
def test_onnx(settings: tuple[str, ...], classes: int, tmp_path: Path) -> None:
    generator = small_generator(*settings, num_classes=classes, channels=2)
    model, metadata = export.trace(generator, uint8=False), {"project": "sagan", "version": "0"}
    export.write_onnx(model, tmp_path / "g.onnx", metadata, 18)
    network = export.open_onnx(tmp_path / "g.onnx")
    assert export.check_images(tmp_path, network, generator, uint8=False)["largest_difference"] < 0.01

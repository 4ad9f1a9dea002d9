import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sagan.attention import record_attention
from sagan.attention.base import cells_of
from sagan.config import load_config
from sagan.inspection.health import attention_modules
from sagan.inspection.maps import attention_of, save_npz
from sagan.inspection.points import grid_points, random_points, salient_points
from sagan.networks import Generator, build_generator
from sagan.normalization import HeldState
from sagan.sampling import default_labels, generate, latents

SEEDS = list(range(3, 14))  # more than one batch of 8


def sharp_generator(num_classes: int = 4) -> Generator:
    """Two attention modules whose maps are not uniform, gamma not 0; in training mode, spectral norm and all."""
    settings = [
        "generator.channels=8",
        "generator.attention={8: {name: self_attention, pool: false}, 16: self_attention}",
    ]
    generator = build_generator(load_config(None, settings), num_classes)
    for module, gamma in zip(generator.attention.values(), (0.5, -0.3), strict=True):
        module.gamma.data.fill_(gamma)  # type: ignore[union-attr]
        module.query.register_forward_hook(lambda _module, _inputs, output: 100 * output)  # type: ignore[union-attr]
    return generator


def inputs(generator: Generator) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
    return latents(SEEDS, generator.z_dim), default_labels(SEEDS, generator.num_classes), SEEDS


def test_rows_are_those_of_the_full_maps_and_images_those_of_sampling() -> None:
    """Breaks when a point gets another cell's row, another image's, or the image is not what `sample` writes."""
    generator = sharp_generator()
    z, labels, seeds = inputs(generator)
    points = torch.stack([random_points(4, seed) for seed in seeds])
    recording = attention_of(generator, z, labels, seeds, points)
    generator.eval()
    assert np.array_equal(recording.images, torch.cat(list(generate(generator, z, labels))).numpy())
    with record_attention(generator) as full, torch.no_grad():
        generator(z, labels)
    assert list(recording.maps) == list(full) == ["attention.8x8", "attention.16x16"]
    for (name, found), size in zip(recording.maps.items(), (8, 16), strict=True):
        assert found.weights.shape == (11, 1, 4, 8, 8)
        cells = cells_of(points, size, size)
        for image in range(11):
            for j, (row, column) in enumerate(cells[image].tolist()):
                expected = full[name].weights[image, :, row * size + column]
                torch.testing.assert_close(found.weights[image, :, j], expected, rtol=1e-3, atol=1e-6)
        assert found.weights.amax() > 3 / 64  # or the test would compare uniform rows
    assert recording.gamma == {"attention.8x8": 0.5, "attention.16x16": pytest.approx(-0.3)}
    assert recording.resolution == {"attention.8x8": (8, 8), "attention.16x16": (16, 16)}


def test_each_image_is_recorded_as_if_alone() -> None:
    """Breaks when batches, their padding or chosen points leak into one another."""
    generator = sharp_generator()
    z, labels, seeds = inputs(generator)
    assert labels is not None
    choose = partial(salient_points, k=3)
    recording = attention_of(generator, z, labels, seeds, choose)
    assert torch.equal(recording.points, salient_points(recording.images, 3))
    for i in (0, 7, 8, 10):
        alone = attention_of(generator, z[i : i + 1], labels[i : i + 1], seeds[i : i + 1], choose)
        assert torch.equal(alone.points[0], recording.points[i])
        for name in recording.maps:
            assert torch.equal(alone.maps[name].weights[0], recording.maps[name].weights[i])


def test_recording_changes_nothing() -> None:
    """Breaks when the network's mode, tensors, listeners or torch's random state are left changed."""
    generator = sharp_generator(num_classes=0).train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    state = torch.get_rng_state()
    recording = attention_of(generator, *inputs(generator), grid_points(2))
    assert generator.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert all(module.listener is None for module in attention_modules(generator).values())
    assert not any(module.held for module in generator.modules() if isinstance(module, HeldState))
    assert (recording.labels == -1).all()


def test_npz_holds_everything_and_needs_no_pickle(tmp_path: Path) -> None:
    """Breaks when an array is missing, of another type or order, or rows do not sum to 1."""
    generator = sharp_generator()
    recording = attention_of(generator, *inputs(generator), partial(salient_points, k=3))
    save_npz(tmp_path / "attention.npz", recording)
    save_npz(tmp_path / "again.npz", recording)
    assert (tmp_path / "attention.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    with np.load(tmp_path / "attention.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], recording.images)
        assert arrays["images"].dtype == np.uint8
        assert arrays["seeds"].tolist() == SEEDS
        assert arrays["labels"].tolist() == [seed % 4 for seed in SEEDS]
        assert np.array_equal((arrays["point_pixels"] + 0.5) / 32, arrays["points"])
        assert arrays["layers"].tolist() == ["attention.8x8", "attention.16x16"]
        assert arrays["kind"].tolist() == ["softmax row"] * 2
        assert arrays["gamma"] == pytest.approx([0.5, -0.3])
        assert arrays["resolution"].tolist() == [[8, 8], [16, 16]]
        for name in arrays["layers"]:
            maps = arrays[f"maps/{name}"]
            assert maps.dtype == np.float32
            assert maps.shape == (11, 1, 3, 8, 8)
            assert np.abs(maps.sum((3, 4)) - 1).max() < 1e-5
            assert np.array_equal(maps, recording.maps[name].weights.numpy())


def test_a_generator_without_attention_records_nothing() -> None:
    """Breaks when no maps are an error here, where training asks for whatever there is."""
    generator = build_generator(load_config(None, ["generator.channels=4", "generator.attention={}"]), 0)
    recording = attention_of(generator, *inputs(generator), grid_points(2))
    assert recording.maps == recording.gamma == {}
    assert len(recording.images) == 11


MEASURE = """
import resource, sys, torch
from sagan.config import load_config
from sagan.inspection.maps import attention_of
from sagan.inspection.points import grid_points
from sagan.networks import build_generator
torch.set_num_threads(1)
settings = ["data.resolution=128", "generator.channels=8", "generator.attention={128: self_attention}"]
generator = build_generator(load_config(None, settings), 0)
z = torch.zeros(8, generator.z_dim)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
with torch.no_grad():
    generator.eval()(z)
before = peak()
attention_of(generator, z, None, range(8), grid_points(4))
print(peak() - before)
"""


@pytest.mark.slow
def test_recording_holds_the_rows_of_the_points_only() -> None:
    """Breaks when the whole map is computed: 16384 × 4096 weights are 256 MiB an image, 2 GiB the batch."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64  # MiB beyond what drawing the images takes

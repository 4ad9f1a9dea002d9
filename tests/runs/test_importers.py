"""Networks of other projects compute the same here. peer_networks.py builds them with the projects' own code.

peers/CASE.zip holds what it wrote for a case (random weights, tiny widths), as made by
`python peer_networks.py PEERS CASE FOLDER && cd FOLDER && zip -9 ../CASE.zip *`.
SAGAN_PEERS names the folder with checkouts of the projects: then the slow test makes every case anew.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_networks import CASES
from torch import Tensor

from sagan.attention.base import record_attention
from sagan.layers.spectral_norm import spectral_normalize
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.runs.import_command import _find
from sagan.runs.importers import Imported, Role, read_network, translate

HERE = Path(__file__).parent
KEPT = sorted(path.stem for path in (HERE / "peers").glob("*.zip"))
ASSUMED: dict[str, dict[str, Any]] = {  # where the settings of a case are not the project's defaults
    "mmgeneration-sagan-inplace": {"gain_offset": 0, "relu_shortcut": True},
}
TOLERANCE = 1e-9


def unpacked(case: str, folder: Path) -> Path:
    """The checkpoints of a case and what they compute."""
    with zipfile.ZipFile(HERE / "peers" / f"{case}.zip") as archive:
        archive.extractall(folder / case)
    return folder / case


def load(folder: Path, role: Role, **assumed: Any) -> Imported:
    return translate(read_network(_find(folder, role), role), ASSUMED.get(folder.name, {}) | assumed)


@torch.no_grad()
def outputs(imported: Imported, expected: dict[str, Tensor], images: Tensor | None, plain: bool) -> dict[str, Tensor]:
    """Output and attention maps in float64, by their names in expected.pt; images also whole."""
    build: Any = Generator if imported.network.role == "generator" else Discriminator
    network = build(imported.settings, imported.resolution, imported.num_classes)
    if imported.settings.spectral_norm and not plain:
        spectral_normalize(network)
    network.double().eval().load_state_dict(imported.plain if plain else imported.state)
    labels = expected["labels"] if imported.num_classes else None
    with record_attention(network) as maps:
        output = network(expected["z"] if images is None else images, labels)
    letter = imported.network.role[0]
    found = {f"{letter}{i}": one.weights[:1].flatten(3)[:, 0, ::7] for i, one in enumerate(maps.values())}
    if letter == "d":
        return {"logits": output.logits, **found}
    return {"pixels": output[..., ::7, ::5], "images": output, **found}


def assert_exact(folder: Path) -> None:
    expected = torch.load(folder / "expected.pt", weights_only=True)
    generator = load(folder, "generator")
    found = outputs(generator, expected, None, plain=True)
    images = found.pop("images")
    networks = [(generator, None)]
    if not folder.name.startswith("tfhub"):  # which has no discriminator
        networks.append((load(folder, "discriminator"), images))
        found |= outputs(networks[1][0], expected, images, plain=True)
    for network, inputs in networks:  # with spectral norm, as in a checkpoint
        found |= {f"{name} with norm": value for name, value in outputs(network, expected, inputs, plain=False).items()}
    found.pop("images with norm")
    compared = {name.removesuffix(" with norm") for name in found}
    assert expected.keys() - compared <= {"z", "labels", "logits"}
    assert "logits" in compared or folder.name.startswith("tfhub")
    for name, value in found.items():
        wanted = expected[name.removesuffix(" with norm")]
        assert wanted.std() > 1e-3 * wanted.abs().mean(), name
        torch.testing.assert_close(value, wanted, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", KEPT)
def test_images_logits_and_attention_are_those_of_the_project(case: str, tmp_path: Path) -> None:
    assert_exact(unpacked(case, tmp_path))


@pytest.mark.slow
@pytest.mark.skipif("SAGAN_PEERS" not in os.environ, reason="SAGAN_PEERS names no checkouts of other projects")
@pytest.mark.parametrize("case", CASES)
def test_with_the_projects_own_code(case: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "peer_networks.py"), os.environ["SAGAN_PEERS"], case, str(tmp_path / case)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_exact(tmp_path / case)


@pytest.mark.parametrize(
    ("case", "role", "changed"),
    [
        ("biggan-pytorch-sagan", "generator", {"norm_eps": 1e-3}),
        ("biggan-pytorch-sagan", "generator", {"last_norm_eps": 1e-3}),
        ("biggan-pytorch-sagan", "generator", {"gain_offset": 0}),
        ("biggan-pytorch-sagan", "discriminator", {"relu_shortcut": True}),
        ("tfhub-biggan", "generator", {"norm_eps": 1e-5}),
        ("tfhub-biggan", "generator", {"last_norm_eps": 1e-4}),
        ("studiogan-sagan", "generator", {"norm_eps": 1e-5}),
        ("studiogan-sagan", "discriminator", {"relu_shortcut": False}),
        ("mimicry-sagan", "generator", {"gain_offset": 1}),
        ("mimicry-sagan", "discriminator", {"relu_shortcut": False}),
        ("mmgeneration-sagan-inplace", "generator", {"gain_offset": 1}),
        ("mmgeneration-sagan-inplace", "discriminator", {"relu_shortcut": False}),
    ],
)
def test_every_assumption_matters(case: str, role: Role, changed: dict[str, Any], tmp_path: Path) -> None:
    folder = unpacked(case, tmp_path)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    images = outputs(load(folder, "generator"), expected, None, plain=True)["images"]
    found = outputs(load(folder, role, **changed), expected, None if role == "generator" else images, plain=True)
    name = "pixels" if role == "generator" else "logits"
    assert (found[name] - expected[name]).abs().max() > 1e-6


def test_bgr_networks_give_and_take_rgb(tmp_path: Path) -> None:
    folder = unpacked("mmgeneration-sagan-inplace", tmp_path)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for plain in (True, False):
        rgb = outputs(load(folder, "generator", channel_order="bgr"), expected, None, plain)["images"]
        torch.testing.assert_close(rgb.flip(1)[..., ::7, ::5], expected["pixels"], rtol=TOLERANCE, atol=TOLERANCE)
        found = outputs(load(folder, "discriminator", channel_order="bgr"), expected, rgb, plain)
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=TOLERANCE, atol=TOLERANCE)

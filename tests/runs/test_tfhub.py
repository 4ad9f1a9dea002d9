"""BigGANs of TF-Hub in HDF5: every number at its place.

Random modules of the published sizes (128 and 256 px, 96 channels), passed through BigGAN-PyTorch's own converter, gave
the same tensors, bit for bit.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command_line import sagan

from sagan.runs.snapshot import load_snapshot
from sagan.runs.tfhub import AVERAGED, read_h5
from sagan.utils.errors import UserError

CH, Z, SHARED, CLASSES = 4, 3, 6, 10
WIDTHS = {128: [16, 16, 8, 4, 2, 1], 256: [16, 16, 8, 8, 4, 2, 1]}
Variables = dict[str, np.ndarray]


def variables(resolution: int) -> Variables:
    """All variables of a module, by their names in TensorFlow."""
    rng, found = np.random.default_rng(0), Variables()

    def put(name: str, *shape: int) -> None:
        for suffix in ("", AVERAGED) if name.rpartition("/")[2] in ("w", "b", "gamma", "beta") else ("",):
            found[name + suffix] = rng.random(shape, np.float32) - 0.4 * ("accumulated" not in name)

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        put(f"{name}/w", *shape)
        put(f"{name}/u0", 1, shape[-1])
        put(f"{name}/u1", 1, int(np.prod(shape[:-1])))
        if bias:
            put(f"{name}/b", shape[-1])

    widths = [CH * width for width in WIDTHS[resolution]]
    put("linear/w", CLASSES, SHARED)
    layer("Generator/G_Z/G_linear", Z, 16 * widths[0])
    for i, (width, after) in enumerate(pairwise(widths)):
        block = f"Generator/GBlock{f'_{i}' if i else ''}"
        for name, side, inputs in (("conv0", 3, width), ("conv1", 3, after), ("conv_sc", 1, width)):
            layer(f"{block}/{name}", side, side, inputs, after)
        for suffix, channels in (("", width), ("_1", after)):
            for name in ("gamma", "beta"):
                layer(f"{block}/HyperBN{suffix}/{name}", Z + SHARED, channels, bias=False)
            for name in ("mean", "var"):
                put(f"{block}/CrossReplicaBN{suffix}/accumulated_{name}", channels)
    for name, inputs, outputs in (("theta", 8, 1), ("phi", 8, 1), ("g", 8, 4), ("o_conv", 4, 8)):
        layer(f"Generator/attention/{name}", 1, 1, inputs, outputs, bias=False)
    put("Generator/attention/gamma", 1)
    for name in ("gamma", "beta"):
        put(f"Generator/ScaledCrossReplicaBN/{name}", 1, 1, 1, CH)
    for name in ("mean", "var"):
        put(f"Generator/ScaledCrossReplicaBNbn/accumulated_{name}", CH)
    layer("Generator/conv_2d", 3, 3, CH, 3)
    return found


def write(path: Path, found: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in found.items():
            file.create_dataset(f"module/{name}:0", data=value)
    return path


@pytest.mark.parametrize("resolution", WIDTHS)
def test_every_number_has_its_place(resolution: int, tmp_path: Path) -> None:
    there = variables(resolution)
    state = read_h5(write(tmp_path / "biggan.h5", there))
    linear, after = there[f"Generator/G_Z/G_linear/w{AVERAGED}"], {128: 3, 256: 4}[resolution]
    c, y, x, width = 5, 1, 2, 16 * CH
    assert state["linear.weight"][c * 16 + y * 4 + x, 2] == linear[2, (y * 4 + x) * width + c]
    bias = there[f"Generator/G_Z/G_linear/b{AVERAGED}"]
    assert state["linear.bias"][c * 16 + y * 4 + x] == bias[(y * 4 + x) * width + c]
    assert state["linear.u0"][0, c * 16 + y * 4 + x] == there["Generator/G_Z/G_linear/u0"][0, (y * 4 + x) * width + c]
    conv = there[f"Generator/GBlock_2/conv1/w{AVERAGED}"]
    assert state["blocks.2.0.conv2.weight"][3, 1, 0, 2] == conv[0, 2, 1, 3]
    gain = there[f"Generator/GBlock/HyperBN_1/gamma/w{AVERAGED}"]  # (z, class) there, (class, z) here
    assert state["blocks.0.0.bn2.gain.weight"][7, 1] == gain[Z + 1, 7]
    assert state["blocks.0.0.bn2.gain.weight"][7, SHARED + 1] == gain[1, 7]
    attention = there[f"Generator/attention/o_conv/w{AVERAGED}"]
    assert state[f"blocks.{after}.1.o.weight"][6, 3, 0, 0] == attention[0, 0, 3, 6]
    assert torch.equal(state["shared.weight"], torch.from_numpy(there[f"linear/w{AVERAGED}"]))
    assert state["output_layer.0.gain"][1] == there[f"Generator/ScaledCrossReplicaBN/gamma{AVERAGED}"][0, 0, 0, 1]
    assert len(state) == len({name for name in there if not name.endswith(("u1", AVERAGED))})


def test_a_file_becomes_a_snapshot(tmp_path: Path) -> None:
    write(tmp_path / "biggan-128.h5", variables(128))
    assert sagan("import", tmp_path / "biggan-128.h5", "--out", tmp_path / "snapshot") == 0
    generator = load_snapshot(tmp_path / "snapshot")
    assert (generator.resolution, generator.num_classes, *generator.attention) == (128, CLASSES, "64x64")
    images = generator(torch.randn(2, generator.z_dim), torch.tensor([0, 9]))
    assert images.shape == (2, 3, 128, 128)
    assert images.std() > 0.01


def test_bad_files_are_one_message(tmp_path: Path) -> None:
    there, secret = variables(128), tmp_path / "secret"
    secret.write_bytes(b"x" * 4000)
    (tmp_path / "text.h5").write_text("an error page")
    write(tmp_path / "part.h5", {name: value for name, value in there.items() if "conv_sc" not in name})
    write(tmp_path / "blocks.h5", {name: value for name, value in there.items() if "GBlock_4" not in name})
    with h5py.File(write(tmp_path / "outside.h5", there), "a") as file:
        file.create_dataset("module/other:0", (1000,), np.float32, external=[(str(secret), 0, 4000)])
    with h5py.File(write(tmp_path / "claims.h5", there), "a") as file:
        file.create_dataset("module/other:0", (10**6, 10**6), np.float32, chunks=(1000, 1000))
    for name, words in {
        "text": "damaged, or not HDF5", "nope": "damaged, or not HDF5", "part": "not a BigGAN of TF-Hub",
        "blocks": "not a BigGAN of TF-Hub", "outside": "lies in another file", "claims": "more bytes than the file",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            read_h5(tmp_path / f"{name}.h5")
        assert len(str(caught.value).splitlines()) == 1

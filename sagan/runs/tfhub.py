"""BigGANs of TF-Hub in HDF5, as BigGAN-PyTorch's TFHub/converter.py dumps them: variables by their TensorFlow names."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sagan.utils.errors import UserError

AVERAGED = "/ema_b999900"  # ends the name of a moving average
ATTENDS_AFTER = {5: 3, 6: 4}  # number of blocks (128 and 256 px) -> the block before the attention


def read_h5(path: Path) -> dict[str, Tensor]:
    """The averaged generator, with the names and shapes of BigGAN-PyTorch. UserError if the file holds none."""
    variables = _variables(path)
    try:
        return _state(variables)
    except (KeyError, IndexError, RuntimeError) as error:
        what = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not a BigGAN of TF-Hub of 128 or 256 px ({what})") from None


def _variables(path: Path) -> dict[str, Tensor]:
    """The variables without their first scope, averaged where there is an average."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: .h5 files need h5py: pip install 'sagan[h5]'") from None
    found: dict[str, Tensor] = {}
    allowed = 4 * path.stat().st_size + (1 << 20) if path.is_file() else 0

    def visit(name: str, item: object) -> None:  # visititems follows no links to other files
        nonlocal allowed
        if not isinstance(item, h5py.Dataset):
            return
        if item.is_virtual or item.external:
            raise UserError(f"{path}: {name[:80]} lies in another file")
        if (allowed := allowed - item.nbytes) < 0:
            raise UserError(f"{path}: its variables claim more bytes than the file holds")
        if item.dtype.kind == "f":
            found[name.partition("/")[2].removesuffix(":0")] = torch.from_numpy(np.array(item))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path}: missing, damaged, or not HDF5 ({' '.join(str(error).split())[:100]})") from None
    averages = {name.removesuffix(AVERAGED): value for name, value in found.items() if name.endswith(AVERAGED)}
    return found | averages


def _state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    shared = variables["linear/w"].shape[1]
    state = {"shared.weight": variables["linear/w"]}

    def layer(theirs: str, here: str, bias: bool = True) -> None:
        weight = variables[f"{theirs}/w"]
        state[f"{here}.weight"] = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        state[f"{here}.u0"] = variables[f"{theirs}/u0"].reshape(1, -1)
        if bias:
            state[f"{here}.bias"] = variables[f"{theirs}/b"].flatten()

    layer("Generator/G_Z/G_linear", "linear")
    for name, rows in (("weight", 0), ("bias", 0), ("u0", 1)):  # from (4, 4, C) to (C, 4, 4)
        each = state[f"linear.{name}"].unflatten(rows, (16, -1))
        state[f"linear.{name}"] = each.transpose(rows, rows + 1).flatten(rows, rows + 1)
    blocks = [f"Generator/GBlock_{i}" if i else "Generator/GBlock" for i in range(8)]
    blocks = [block for block in blocks if f"{block}/conv0/w" in variables]
    for i, block in enumerate(blocks):
        for theirs, here in (("conv0", "conv1"), ("conv1", "conv2"), ("conv_sc", "conv_sc")):
            layer(f"{block}/{theirs}", f"blocks.{i}.0.{here}")
        for norm, suffix in (("bn1", ""), ("bn2", "_1")):
            for theirs, here in (("gamma", "gain"), ("beta", "bias")):
                name = f"blocks.{i}.0.{norm}.{here}"
                layer(f"{block}/HyperBN{suffix}/{theirs}", name, bias=False)
                chunk, embedding = state[f"{name}.weight"].tensor_split([-shared], dim=1)
                state[f"{name}.weight"] = torch.cat([embedding, chunk], dim=1)
            for moment in ("mean", "var"):
                state[f"blocks.{i}.0.{norm}.stored_{moment}"] = variables[
                    f"{block}/CrossReplicaBN{suffix}/accumulated_{moment}"
                ]
    attention = f"blocks.{ATTENDS_AFTER[len(blocks)]}.1"
    for theirs, here in (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o_conv", "o")):
        layer(f"Generator/attention/{theirs}", f"{attention}.{here}", bias=False)
    state[f"{attention}.gamma"] = variables["Generator/attention/gamma"].squeeze()
    last = "Generator/ScaledCrossReplicaBN"
    state |= {"output_layer.0.gain": variables[f"{last}/gamma"].flatten(),
              "output_layer.0.bias": variables[f"{last}/beta"].flatten()}  # fmt: skip
    state |= {f"output_layer.0.stored_{m}": variables[f"{last}bn/accumulated_{m}"] for m in ("mean", "var")}
    layer("Generator/conv_2d", "output_layer.2")
    return state

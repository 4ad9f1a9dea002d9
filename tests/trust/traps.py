"""Pickles that make the folder SPRUNG in the working folder when anything unpickles them, in every container."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sagan.runs.checkpoint import _digest
from sagan.utils.io import sha256

SPRUNG = "SPRUNG"


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (SPRUNG,)


def raw(protocol: int = 4) -> bytes:
    return pickle.dumps(Trap(), protocol)


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Trap()] * 4, dtype=object), allow_pickle=True)
    return file.getvalue()


def npz(**plain: Any) -> bytes:
    """Arrays of traps under the keys whose value is None, plain arrays under the others."""
    trap = np.array([Trap()] * 4, dtype=object)
    file = io.BytesIO()
    np.savez(file, **{key: trap if value is None else np.asarray(value) for key, value in plain.items()})
    return file.getvalue()


def torch_file(legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save({"a": Trap()}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def checkpoint(folder: Path, name: str) -> None:
    """Put a trap into a checkpoint with right checksums, as only whoever means it would."""
    (folder / name).write_bytes(torch_file())
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][name] = sha256(folder / name)
    del state["state_sha256"]
    (folder / "state.json").write_text(json.dumps({**state, "state_sha256": _digest(state)}))

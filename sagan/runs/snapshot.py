"""Snapshots: the averaged generator as a self-contained folder (config.json, model.safetensors)."""

import hashlib
import json
import os
import re
from pathlib import Path

import torch

from sagan.models.generator import Generator
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_folder


def load_snapshot(path_or_id: str | os.PathLike[str]) -> Generator:
    """Load the generator of a snapshot folder, of the newest snapshot of a run, or of a Hub id.

    It is on the CPU, in eval mode and in channels-last format. Raises UserError if it is missing, damaged or of another
    kind.

    Examples:
        >>> generator = sagan.load_snapshot("runs/shapes")
        >>> z = torch.randn(4, generator.z_dim)
        >>> generator(z, torch.arange(4)).shape  # in [-1, 1]
        torch.Size([4, 3, 32, 32])
    """
    path_or_id = os.fspath(path_or_id)
    run = Path(path_or_id)
    if not run.exists() and len(run.parts) > 1 and run.parent.is_dir():  # a typo, no Hub id
        raise UserError(f"{run}: no such snapshot or run in {run.parent}")
    generator = Generator.from_pretrained(newest_snapshot(run) if (run / "snapshots").is_dir() else path_or_id)
    generator.memory_format = torch.channels_last
    return generator


def snapshots(run: Path | str) -> list[Path]:
    """The snapshots of a run, NAME/snapshots/<8-digit step>, sorted by step. Raises UserError if there are none."""
    folder = Path(run) / "snapshots"
    steps = [path for path in folder.glob("*") if path.is_dir() and re.fullmatch("[0-9]{8}", path.name)]
    if not steps:
        raise UserError(f"{folder}: no snapshot yet (training.snapshot_every sets how often one is written)")
    return sorted(steps, key=lambda path: path.name)


def newest_snapshot(run: Path | str) -> Path:
    """The snapshot of the highest step of a run. Raises UserError if there are none."""
    return snapshots(run)[-1]


def save_snapshot(generator: Generator, folder: Path | str) -> None:
    """Write a snapshot atomically; equal generators give equal bytes. Spectral norm must have been removed."""
    with atomic_folder(folder) as temporary:
        generator._save_pretrained(temporary)


def fingerprint(generator: Generator) -> str:
    """SHA-256 (hexadecimal) of all that determines the images of a generator: its settings and tensors."""
    digest = hashlib.sha256(json.dumps(generator.snapshot_config(), sort_keys=True).encode())
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()

"""Snapshots on disk: a folder with config.json and model.safetensors, local or on the Hugging Face Hub.

Bytes are reproducible (no dates, paths or host names), and reading executes nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sagan.utils.errors import UserError
from sagan.utils.io import read_json, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a snapshot on the Hub nothing else is fetched
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
FORMAT = "sagan-generator-1"
MODEL_CARD = """---
{{ card_data }}
---

A generator trained with `sagan`, a Self-Attention GAN (Zhang et al., arXiv:1805.08318).

```python
import sagan, torch

generator = sagan.load_snapshot("{{ repo_id | default("this repository", true) }}")
labels = torch.arange(4) % generator.num_classes if generator.num_classes else None
images = generator(torch.randn(4, generator.z_dim), labels)  # (4, 3, R, R) in [-1, 1]
```
"""


def write_snapshot(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    save_tensors(state, folder / WEIGHTS)
    write_json(folder / CONFIG, {"format": FORMAT, **config})


def read_snapshot(path_or_id: str, **hub: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a snapshot folder or, if there is no such folder, of a Hub id.

    `hub`: keyword arguments of `hf_hub_download`. UserError if it is missing, damaged, or not a snapshot.
    """
    config_path, weights_path = (_locate(path_or_id, name, hub) for name in (CONFIG, WEIGHTS))
    config = read_json(config_path)
    found = config.get("format") if isinstance(config, dict) else type(config).__name__
    if found != FORMAT:
        found = str(found)[:100]
        raise UserError(f"{config_path}: not a snapshot of this project (format {found!r}, expected {FORMAT!r})")
    _check_names(config_path, config)
    state = read_tensors(weights_path)
    _check_numbers(config_path, config, sum(tensor.numel() for tensor in state.values()))
    return config, state


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file with reproducible bytes. OSError if the disk is full."""
    on_cpu = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    try:
        path.write_bytes(save(on_cpu, metadata={"format": "pt"}))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. UserError if it is missing, damaged, or of another format."""
    try:
        return load_file(path)
    except Exception as error:  # damaged bytes raise many types of errors
        raise UserError(f"{path}: missing, damaged, or not a safetensors file ({error})") from None


def load_exactly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict. UserError for a tensor that is missing, unexpected, or of another shape or type.

    Floats of any width are accepted if they are finite in the network's own width.
    """
    own = module.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(f"{where}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(state.keys() - own.keys()):
        raise UserError(f"{where}: tensor {extra[0]} is not part of this network ({len(extra)} in all)")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, this network needs {tuple(own[name].shape)}"
            )
        wanted = own[name].dtype
        if tensor.dtype != wanted and not (tensor.is_floating_point() and wanted.is_floating_point):
            raise UserError(f"{where}: {name} holds {tensor.dtype} values, this network needs {wanted}")
        if tensor.is_floating_point() and not torch.isfinite(tensor.to(wanted)).all():
            raise UserError(f"{where}: {name} holds values that are not finite")
    module.load_state_dict(state)


def _check_names(path: Path, config: dict[str, Any]) -> None:
    """Class names are shown in terminals, figures and HTML pages, so they must be printable strings."""
    names, classes = config.get("class_names", []), config.get("num_classes")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UserError(f"{path}: class_names is not a list of printable names")
    if names and isinstance(classes, int) and classes > 0 and len(names) != classes:
        raise UserError(f"{path}: {len(names)} class_names for {str(classes)[:20]} classes")


def _check_numbers(path: Path, tree: Any, numbers: int) -> None:
    """UserError if a number exceeds the size of the tensors: a few bytes of text could otherwise request terabytes."""
    if isinstance(tree, dict | list):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            _check_numbers(path, inner, numbers)
    elif isinstance(tree, int | float) and tree > max(numbers, 1024):
        raise UserError(f"{path}: says {str(tree)[:30]}, its tensors hold {numbers} numbers; one is not of the other")


def _locate(path_or_id: str, name: str, hub: dict[str, Any]) -> Path:
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a snapshot, it has no {name}")
        return folder / name
    if folder.exists():
        raise UserError(f"{folder}: a snapshot is a folder with {CONFIG} and {WEIGHTS}, this is a file")
    if "/" not in path_or_id:
        raise UserError(f"{path_or_id}: no such folder (an id on the Hub would be USER/NAME)")
    if HUB_ID.fullmatch(path_or_id) is None or ".." in path_or_id or "--" in path_or_id:
        raise UserError(f"{path_or_id}: no such file or folder, and not on the Hub (an id there is USER/NAME)")
    return download(path_or_id, name, hub)


def hub_parts(path: Path) -> tuple[str, str] | None:
    """Repository and file of USER/NAME/FILE on the Hub, or USER/NAME without a file; None for any other path."""
    repository, name = "/".join(path.parts[:2]), "/".join(path.parts[2:])
    if not HUB_ID.fullmatch(repository) or ".." in str(path) or "--" in repository or Path(path.parts[0]).exists():
        return None
    return repository, name


def files_on_hub(repository: str) -> list[str]:
    """Names of the files in a repository. UserError if it cannot be had."""
    from huggingface_hub import HfApi  # here: local folders do not need the Hub client

    with _refused(repository):
        return HfApi().list_repo_files(repository)


def download(repository: str, name: str, hub: dict[str, Any]) -> Path:
    """A file of a repository on the Hub, in its local cache. UserError if it cannot be had."""
    from huggingface_hub import hf_hub_download

    with _refused(repository):
        return Path(hf_hub_download(repository, name, **hub))


@contextmanager
def _refused(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # hide its messages about retries
    try:
        yield
    except (HFValidationError, EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{repository}: no such file or folder, and not on the Hub ({reason})") from None

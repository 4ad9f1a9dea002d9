"""Weights of networks that others published: where their files come from, and their tensors. Nothing is executed."""

import hashlib
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from sagan.errors import UserError
from sagan.files import atomic_file, sha256
from sagan.progress import track

MEBIBYTE, PATIENCE = 1 << 20, 10.0  # seconds without an answer after which a download is given up


@dataclass(frozen=True)
class Published:
    """A file of weights on the network.

    Attributes:
        sha256: all its digits, or the first ones where only these are known; "" where none are.
        file: its name in torch hub's cache, where it is not that of the URL.
    """

    url: str
    sha256: str = ""
    file: str = ""

    @property
    def cached(self) -> Path:
        """Its place in torch hub's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / (self.file or Path(urlparse(self.url).path).name)

    @property
    def digits(self) -> str:
        """How to recognise it, in words."""
        if not self.sha256:
            return "its SHA-256 is not published"
        return f"SHA-256 {self.sha256}" + ("" if len(self.sha256) == 64 else "…")


def find_weights(published: Published, given: Path | str | None = None, option: str = "weights") -> Path:
    """The file that is `given`; None: the published one from torch hub's cache, downloaded once if it is not there.

    `option`: how the user would name a file. UserError when there is none, or the cache holds another one by its name.
    """
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"{given}: no such file of weights")
        return Path(given)
    path = published.cached
    if not path.is_file():
        _download(published, path, option)
    elif not sha256(path).startswith(published.sha256):
        raise UserError(f"{path}: not the published file ({published.digits}); delete it, or name a file by {option}")
    return path


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a dictionary that torch.save wrote, on the CPU.

    UserError when the file is missing, damaged, holds anything but tensors, or values that are not finite.
    """
    try:
        with warnings.catch_warnings():  # torch's advice for TorchScript
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: weights that cannot be read ({error.strerror})") from None
    except Exception:  # of damaged bytes anything may come
        raise UserError(f"{path}: damaged, cut short, or not a file of tensors alone; nothing was executed") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no named tensors, weights are a dictionary of them")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is not a tensor, weights are a dictionary of tensors")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    return {str(name): value for name, value in content.items()}


def as_file(tensors: Mapping[str, Tensor]) -> BytesIO:
    """Tensors as a file in memory, for code of others that would unpickle a file by its path."""
    file = BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    return file


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _download(published: Published, path: Path, option: str) -> None:
    try:
        with atomic_file(path) as temporary:
            opener = urllib.request.build_opener()  # one of ours: urlopen keeps the proxies of its first call
            with opener.open(published.url, timeout=PATIENCE) as source, open(temporary, "wb") as target:
                size = int(source.headers.get("Content-Length") or 0)
                blocks = iter(partial(source.read, MEBIBYTE), b"")
                for block in track(blocks, size // MEBIBYTE, f"MiB of {path.name}"):
                    target.write(block)
            if size not in (0, temporary.stat().st_size) or not sha256(temporary).startswith(published.sha256):
                raise OSError("what came is cut short, or another file")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{path}: not there, and {published.url} cannot be downloaded ({error or type(error).__name__}); "
            f"put the file there ({published.digits}), or name it by {option}"
        ) from None

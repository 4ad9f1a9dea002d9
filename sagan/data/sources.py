"""From what the user writes as SOURCE to the source that it names."""

import hashlib
from collections.abc import Iterator
from functools import partial

from PIL import Image

from sagan.data.folder import FolderSource
from sagan.data.npz import NpzSource
from sagan.data.source import Item, Source
from sagan.data.torchvision_sets import TorchvisionSource
from sagan.errors import UserError
from sagan.files import expand_home

DEFAULT_SHAPES = 20_000


def open_source(text: str, resolution: int) -> Source:
    """`shapes`, `shapes:COUNT`, `torchvision:NAME`, an `.npz`, or a folder of images.

    `resolution` concerns shapes alone, which are rendered at it. Raises UserError for what does not exist or is none of
    these, and as the sources themselves do.
    """
    kind, _, rest = text.partition(":")
    if kind == "shapes":
        return ShapesSource(rest, resolution)
    if kind == "torchvision":
        return TorchvisionSource(rest)
    path = expand_home(text)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return NpzSource(path)
    if path.is_file():
        hint = (
            "unpack it and give the folder"
            if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz"}
            else "give a folder"
        )
        raise UserError(f"{text}: a file that is no .npz; {hint}")
    raise UserError(f"{text}: no such folder or file (nor `shapes` or `torchvision:NAME`)")


class ShapesSource(Source):
    """The embedded data set, rendered at `resolution`. Raises UserError for a count that is not positive."""

    def __init__(self, count: str, resolution: int) -> None:
        from sagan.data.shapes import CLASSES

        if count and not (count.isascii() and count.isdigit() and len(count) <= 15 and int(count) > 0):
            raise UserError(
                f"shapes:{count}: expected shapes:COUNT with a positive number of images, such as shapes:5000"
            )
        self._count, self._resolution, self._classes = int(count or DEFAULT_SHAPES), resolution, CLASSES
        self.name, self.num_classes = f"shapes:{self._count}", len(CLASSES)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Of the first renders, so that a change of the renderer shows."""
        first = [item.read()[0].tobytes() for item, _ in zip(self.items(), range(8), strict=False)]
        return f"{self._count} {hashlib.sha256(b''.join(first)).hexdigest()}"

    def class_names(self) -> tuple[str, ...]:
        return self._classes

    def items(self) -> Iterator[Item]:
        for index in range(self._count):
            yield Item(f"image {index}", partial(_render, index, self._resolution))


def _render(index: int, resolution: int) -> tuple[Image.Image, int]:
    from sagan.data.shapes import render

    pixels, label, _ = render(index, resolution)
    return Image.fromarray(pixels), label

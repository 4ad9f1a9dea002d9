"""What every source of images offers to preparation: named items that are read when their turn comes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# The decoders that may touch a file; the others (EPS starts a program, PSD, FITS, …) never see one.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Item:
    """One image of a source. `read` opens it, perhaps without decoding, and gives its label; it runs in any thread."""

    name: str
    read: Callable[[], tuple[Image.Image, int]]


class Problem(NamedTuple):
    """Something in a source that cannot be used: a kind of `doctor.UNUSABLE`, its name, and why."""

    kind: str
    name: str
    reason: str


class Source(ABC):
    """Images that are not yet prepared.

    Attributes:
        name: what manifest and messages call it; no path of this machine.
        num_classes: 0 for images without labels.
        root: the folder in which the images lie, if they do.
        problems: what was found unusable before any image is read; `items` leaves it out.
        ignored: names of files that are not images.
    """

    name: str
    num_classes: int
    root: Path | None = None
    problems: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes when the source's images change."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """One name for each label; () without labels."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """The images, in the source's order; call it once, from one thread."""


def cache_folder() -> Path:
    """Where downloads and data prepared by the way are kept."""
    return Path.home() / ".cache" / "sagan"


def printable(name: str) -> str:
    """A file's name fit for a terminal and for JSON: control characters and broken encodings are escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]

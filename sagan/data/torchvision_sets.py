"""Data sets that torchvision downloads, by name: `torchvision:cifar10`.

They are read by torchvision's code. CIFAR's files are pickles: torchvision opens them only with the MD5 it knows.
"""

import contextlib
import difflib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from sagan.data.source import Item, Source, cache_folder
from sagan.errors import UserError


@dataclass(frozen=True)
class Entry:
    """How torchvision.datasets makes a data set: its class, and its options (one dict for each part that is taken)."""

    dataset: str
    num_classes: int  # 0: no labels
    parts: tuple[dict[str, Any], ...] = field(default=({},))
    downloads: bool = True


KEYS = "_cache_*"
TRAIN, WHOLE = ({"split": "train"},), ({"split": "train"}, {"split": "val"}, {"split": "test"})
SETS = {
    "cifar10": Entry("CIFAR10", 10),
    "cifar100": Entry("CIFAR100", 100),
    "stl10": Entry("STL10", 10, TRAIN),
    "stl10-unlabeled": Entry("STL10", 0, ({"split": "unlabeled"},)),
    "svhn": Entry("SVHN", 10, TRAIN),
    "mnist": Entry("MNIST", 10),
    "fashion-mnist": Entry("FashionMNIST", 10),
    "kmnist": Entry("KMNIST", 10),
    "celeba": Entry("CelebA", 0, ({"split": "all"},)),
    "food101": Entry("Food101", 101, TRAIN),
    "flowers102": Entry("Flowers102", 102, WHOLE),
    "oxford-pets": Entry("OxfordIIITPet", 37, ({"split": "trainval"}, {"split": "test"})),
    "dtd": Entry("DTD", 47, WHOLE),
    "eurosat": Entry("EuroSAT", 10),
    "gtsrb": Entry("GTSRB", 43, TRAIN),
    "fgvc-aircraft": Entry("FGVCAircraft", 100, WHOLE),
    "imagenette": Entry("Imagenette", 10, TRAIN),
    "places365": Entry("Places365", 365, ({"small": True},)),
    "sun397": Entry("SUN397", 397),
    "caltech256": Entry("Caltech256", 257),
    "lsun": Entry("LSUN", 10, ({"classes": "train"},), downloads=False),
    "lsun-bedroom": Entry("LSUN", 0, ({"classes": ["bedroom_train"]},), downloads=False),
    "lsun-church": Entry("LSUN", 0, ({"classes": ["church_outdoor_train"]},), downloads=False),
}


class TorchvisionSource(Source):
    """A data set of `SETS`, downloaded when it is first read. Raises UserError for an unknown name."""

    def __init__(self, name: str) -> None:
        if name not in SETS:
            near = difflib.get_close_matches(name, SETS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"torchvision:{name}: no such data set; {hint}known: {', '.join(sorted(SETS))}")
        self.name, self._entry = f"torchvision:{name}", SETS[name]
        self.num_classes = self._entry.num_classes

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def fingerprint(self) -> str:
        return self.name

    def class_names(self) -> tuple[str, ...]:
        numbers = [str(label) for label in range(self.num_classes)]
        return tuple(getattr(self._parts[0], "classes", None) or numbers) if self.num_classes else ()

    def items(self) -> Iterator[Item]:
        number = itertools.count()
        for part in self._parts:
            for index in range(len(part)):
                yield Item(f"image {next(number)}", partial(_read, part, index, self.num_classes > 0))

    @cached_property
    def _parts(self) -> list[Any]:
        from torchvision import datasets

        root = cache_folder() / "torchvision"
        make = getattr(datasets, self._entry.dataset)
        download = {"download": True} if self._entry.downloads else {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr), _no_pickled_keys(self._entry):
                return [make(str(root), **options, **download) for options in self._entry.parts]
        except (OSError, RuntimeError, ImportError) as error:
            what = "download" if self._entry.downloads else "find (torchvision does not download it)"
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name}: could not {what} in {root}: {reason}") from None


@contextlib.contextmanager
def _no_pickled_keys(entry: Entry) -> Iterator[None]:
    """For LSUN, torchvision unpickles _cache_… of the working folder unseen, and writes it: neither happens here."""
    if entry.dataset != "LSUN":
        yield
        return
    if found := next(Path.cwd().glob(KEYS), None):
        raise UserError(f"{found}: torchvision would unpickle this file, which could run any program; remove it")
    try:
        yield
    finally:
        for written in Path.cwd().glob(KEYS):
            written.unlink()


def _read(dataset: Any, index: int, labelled: bool) -> tuple[Image.Image, int]:
    image, target = dataset[index]
    return image, int(target) if labelled else 0

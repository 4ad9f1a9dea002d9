"""Published results of SAGAN and its neighbours, to be looked at beside one's own: they were measured otherwise.

The SAGAN paper: Zhang et al. 2019 (arXiv:1805.08318), tables 1 and 2. mmgeneration and StudioGAN: the result tables
that they publish with their code.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sagan.errors import UserError

CIFAR10, IMAGENET128, TINY_IMAGENET64 = "cifar10", "imagenet128", "tiny-imagenet64"
CIFAR10_CLASSES = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
IN_THE_PAPER = "50k samples, moving averages in batch norm"
IN_MMGENERATION = "as in mmgeneration's table"
IN_STUDIOGAN = "as in StudioGAN's table"
STUDIOGAN_50K = "50k samples against the training images"


@dataclass(frozen=True)
class Published:
    """One row of a published table. `scores`: by the names of our metrics; `protocol`: how, in words."""

    source: str
    data: str
    scores: dict[str, float]
    protocol: str


PUBLISHED: tuple[Published, ...] = (
    Published("SAGAN paper, attention at 32", IMAGENET128, {"fid": 18.28, "is": 51.43}, IN_THE_PAPER),
    Published(
        "SAGAN paper, attention at 64", IMAGENET128, {"fid": 18.65, "is": 52.52, "intra_fid": 83.7}, IN_THE_PAPER
    ),
    Published("SAGAN paper, attention at 16", IMAGENET128, {"fid": 22.14, "is": 45.94}, IN_THE_PAPER),
    Published("SAGAN paper, attention at 8", IMAGENET128, {"fid": 22.98, "is": 43.15}, IN_THE_PAPER),
    Published("SAGAN paper, no attention", IMAGENET128, {"fid": 22.96, "is": 42.87}, IN_THE_PAPER),
    Published("mmgeneration SAGAN, BigGAN schedule", IMAGENET128, {"fid": 12.83, "is": 69.54}, IN_MMGENERATION),
    Published("StudioGAN SAGAN", IMAGENET128, {"fid": 34.73, "is": 29.85}, IN_STUDIOGAN),
    Published("mmgeneration SAGAN", CIFAR10, {"fid": 9.43, "is": 9.32}, f"{IN_MMGENERATION}, best checkpoint"),
    Published("StudioGAN SAGAN", CIFAR10, {"fid": 10.35, "is": 8.64, "precision": 0.69, "recall": 0.63}, STUDIOGAN_50K),
    Published("StudioGAN SNGAN (no attention)", CIFAR10, {"fid": 9.01, "is": 8.83}, STUDIOGAN_50K),
    Published("StudioGAN SAGAN", TINY_IMAGENET64, {"fid": 51.41, "is": 8.34}, IN_STUDIOGAN),
)
DATA_SETS = (CIFAR10, IMAGENET128, TINY_IMAGENET64)
ALWAYS = "published scores differ in samples, reference, batch-norm mode and Inception weights: no ranking with yours"
FACTS: dict[str, str] = {
    CIFAR10: "the protocol decides: one and the same StudioGAN checkpoint has FID 14.01 with 10k samples against the "
    "test images and 10.20 with 50k against the training images",
}


def published_results(data: str) -> tuple[Published, ...]:
    """The rows of a data set. UserError for a name without published results."""
    if data not in DATA_SETS:
        near = difflib.get_close_matches(data, DATA_SETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DATA_SETS)}"
        raise UserError(f"--published {data}: no published results on that data set; {hint}")
    return tuple(row for row in PUBLISHED if row.data == data)


def notes_on(data: str) -> tuple[str, ...]:
    """What has to be known before one reads the rows of a data set, a sentence each."""
    return (ALWAYS, *([FACTS[data]] if data in FACTS else []))


def recognise(class_names: Sequence[str], resolution: int) -> str | None:
    """The data set, by the names of its classes and the resolution; None for one without published results."""
    if resolution == 32 and {name.lower() for name in class_names} == CIFAR10_CLASSES:
        return CIFAR10
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    if wordnet and (len(class_names), resolution) == (1000, 128):
        return IMAGENET128
    return TINY_IMAGENET64 if wordnet and (len(class_names), resolution) == (200, 64) else None

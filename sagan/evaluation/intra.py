"""Intra-class FID: the FID of each class by itself, and its mean.

Self-Attention Generative Adversarial Networks. Zhang, Goodfellow, Metaxas, Odena. 2018, arXiv:1805.08318, section 4.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from sagan.errors import UserError
from sagan.evaluation.statistics import Moments, Statistics, frechet_distance
from sagan.progress import track

BATCH = 1024  # features read at a time


class ClassStatistics(Mapping[int, Statistics]):
    """Statistics of the features of each class, computed when asked for: 1000 classes of 2048 features fill 34 GB."""

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._features, self._labels = features, labels
        self._classes = np.unique(labels).tolist()

    def __getitem__(self, label: int) -> Statistics:
        if label not in self:
            raise KeyError(label)
        rows = np.flatnonzero(self._labels == label)
        moments = Moments(self._features.shape[1], "cpu")
        for start in range(0, len(rows), BATCH):
            moments.update(torch.from_numpy(self._features[rows[start : start + BATCH]]))
        return moments.statistics()

    def __contains__(self, label: object) -> bool:
        return label in self._classes

    def __iter__(self) -> Iterator[int]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


def class_statistics(features: np.ndarray, labels: np.ndarray, name: str = "the images") -> ClassStatistics:
    """Statistics by class of features (N, D), memory-mapped ones too, with integer labels (N,).

    Raises UserError where a class has one image only, which has no covariance; `name` is what it calls the set.
    """
    assert features.ndim == 2
    assert labels.shape == features.shape[:1]
    classes, counts = np.unique(labels, return_counts=True)
    if single := classes[counts < 2].tolist():
        raise UserError(f"intra_fid: only one image of {_listed(single)} among {name}; a class needs at least 2")
    return ClassStatistics(features, labels)


def intra_fid(samples: Mapping[int, Statistics], reference: Mapping[int, Statistics]) -> tuple[float, dict[int, float]]:
    """Mean over the classes of the FID of each, and these (Zhang et al. 2018, section 4).

    Raises UserError, which names the classes, where one side has a class that the other has not.
    """
    for here, there, name in ((samples, reference, "the reference"), (reference, samples, "the samples")):
        if missing := [label for label in here if label not in there]:
            raise UserError(f"intra_fid: no image of {_listed(missing)} among {name}; both sets need the same classes")
    assert samples
    labels = sorted(samples)
    distances = {}
    for label in track(labels, len(labels), "FID of each class"):
        names = (f"the samples of class {label}", f"the reference of class {label}")
        distances[label] = frechet_distance(samples[label], reference[label], names)
    return float(np.mean(list(distances.values()))), distances


def _listed(labels: list[int]) -> str:
    return f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels[:8]))}{', …' if len(labels) > 8 else ''}"

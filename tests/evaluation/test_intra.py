"""The FID of each class, against torch-fidelity's on the features of that class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sagan.evaluation.fid import intra_fid


def labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) around a place of their class, in no order; classes 0, 2 and 3."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize([0, 2, 3, 3], count))
    return (rng.normal(size=(count, 6)) + labels[:, None] + 0.1 * seed).astype(np.float32), labels


def torch_fidelity(x: np.ndarray, y: np.ndarray) -> float:
    parts = (fid_features_to_statistics(torch.from_numpy(z).double()) for z in (x, y))
    return fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"]


def test_intra_fid_is_the_mean_of_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class has torch-fidelity's FID, all count the same, and features may be memory-mapped."""
    monkeypatch.setattr("sagan.evaluation.fid.BATCH", 7)
    (x, x_labels), (y, y_labels) = labelled(400, 0), labelled(300, 1)
    np.save(tmp_path / "x.npy", x)
    mean, distances = intra_fid(np.load(tmp_path / "x.npy", mmap_mode="r"), x_labels, y, y_labels)
    assert list(distances) == [0, 2, 3]
    for label, distance in distances.items():
        assert distance == pytest.approx(torch_fidelity(x[x_labels == label], y[y_labels == label]), rel=1e-6)
    assert mean == pytest.approx(np.mean(list(distances.values())))

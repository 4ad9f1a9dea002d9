"""The FID of each class, against torch-fidelity's on the features of that class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sagan.errors import UserError
from sagan.evaluation.intra import class_statistics, intra_fid


def labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) around a place of their class, in no order; classes 0, 2 and 3."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize([0, 2, 3, 3], count))
    return (rng.normal(size=(count, 6)) + labels[:, None] + 0.1 * seed).astype(np.float32), labels


def torch_fidelity(x: np.ndarray, y: np.ndarray) -> float:
    parts = (fid_features_to_statistics(torch.from_numpy(z).double()) for z in (x, y))
    return fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"]


def test_intra_fid_is_the_mean_of_the_classes(tmp_path: Path) -> None:
    """Breaks when classes are mixed up, weighed by their size, or memory-mapped features are not read."""
    (x, x_labels), (y, y_labels) = labelled(400, 0), labelled(300, 1)
    np.save(tmp_path / "x.npy", x)
    samples = class_statistics(np.load(tmp_path / "x.npy", mmap_mode="r"), x_labels)
    mean, distances = intra_fid(samples, class_statistics(y, y_labels))
    assert list(distances) == [0, 2, 3]
    for label, distance in distances.items():
        assert distance == pytest.approx(torch_fidelity(x[x_labels == label], y[y_labels == label]), rel=1e-6)
    assert mean == pytest.approx(np.mean(list(distances.values())))


def test_statistics_are_of_one_class_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a class takes others' features, or only the first batch of its own."""
    monkeypatch.setattr("sagan.evaluation.intra.BATCH", 7)
    features, labels = labelled(100, 0)
    found = class_statistics(features, labels)
    assert (list(found), len(found)) == ([0, 2, 3], 3)
    assert 1 not in found
    with pytest.raises(KeyError):
        found[1]
    for label in found:
        assert found[label].count == (labels == label).sum()
        assert np.allclose(found[label].mean, features[labels == label].mean(0), rtol=1e-6)
        assert np.allclose(found[label].covariance, np.cov(features[labels == label], rowvar=False), rtol=1e-5)


def test_plain_dictionaries_will_do() -> None:
    """Breaks when intra_fid needs more than a mapping."""
    features, labels = labelled(100, 0)
    statistics = dict(class_statistics(features, labels))
    mean, distances = intra_fid(statistics, statistics)
    assert mean < 1e-9
    assert len(distances) == 3


def test_missing_and_single_images_are_named() -> None:
    """Breaks when a class without its like is left out of the mean, or one image passes for a distribution."""
    features, labels = labelled(100, 0)
    all_of_them, fewer = class_statistics(features, labels), class_statistics(features[labels > 0], labels[labels > 0])
    with pytest.raises(UserError, match=r"^intra_fid: no image of class 0 among the samples; "):
        intra_fid(fewer, all_of_them)
    with pytest.raises(UserError, match=r"^intra_fid: no image of class 0 among the reference; "):
        intra_fid(all_of_them, fewer)
    with pytest.raises(UserError, match=r"^intra_fid: only one image of classes 7, 8 among the data; "):
        class_statistics(np.zeros((4, 3), np.float32), np.array([7, 8, 9, 9]), "the data")

"""Streaming statistics, the Fréchet distance and FID within classes, against NumPy and torch-fidelity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from two import in_two

from sagan.evaluation import fid
from sagan.evaluation.fid import Moments, Statistics, _nuclear_norm, float64_device, frechet_distance, intra_fid
from sagan.utils.errors import UserError


def features_like(count: int, dimension: int, seed: int, decay: float = 4.0) -> np.ndarray:
    """Rectified, mixed, and spread over `decay` orders of magnitude of variance, as features of networks are."""
    scales = 10 ** np.linspace(0.5, 0.5 - decay / 2, dimension)
    features = np.maximum(np.random.default_rng(seed).normal(0.3, 1, (count, dimension)), -1)
    return (features + sum(np.roll(features, shift, axis=1) for shift in (1, 5, 40))) * scales / 2


def statistics_of(features: np.ndarray) -> Statistics:
    return Statistics(len(features), features.mean(0), np.cov(features, rowvar=False))


def streamed(features: np.ndarray, *ends: int) -> Moments:
    moments = Moments(features.shape[1], "cpu")
    for batch in np.split(features, ends):
        moments.update(torch.from_numpy(batch))
    return moments


def torch_fidelity(a: Statistics, b: Statistics) -> float:
    parts = ({"mu": s.mean, "sigma": s.covariance} for s in (a, b))
    return fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"]


def assert_close(found: Statistics, expected: Statistics, relative: float) -> None:
    assert found.count == expected.count
    for here, there in ((found.mean, expected.mean), (found.covariance, expected.covariance)):
        assert here.dtype == np.float64
        assert np.abs(here - there).max() <= relative * np.abs(there).max()


def test_streamed_statistics_are_those_of_the_whole() -> None:
    features = features_like(300, 40, seed=0)
    moments = streamed(features, 1, 1, 2, 130, 299)  # one batch is empty
    moments.reduce()  # nothing to do without a process group
    found = moments.statistics()
    assert_close(found, statistics_of(features), 1e-12)
    assert_close(streamed(features.astype(np.float32), 64, 128).statistics(), statistics_of(features), 1e-6)
    moments.update(torch.ones(5, 40))
    assert_close(found, statistics_of(features), 1e-12)  # no memory is shared


def test_a_large_mean_costs_no_precision() -> None:
    features = np.random.default_rng(0).normal(1e8, 1, (500, 8))
    found = streamed(features, *range(50, 500, 50)).statistics()
    assert np.abs(found.covariance - np.cov(features - 1e8, rowvar=False)).max() < 1e-6
    assert np.abs(found.mean - 1e8 - (features - 1e8).mean(0)).max() < 1e-6


def test_mps_sums_are_on_the_cpu() -> None:
    assert float64_device("mps") == torch.device("cpu")
    assert float64_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize("end", [30, 101, 0])
def test_two_processes_add_up(end: int, tmp_path: Path) -> None:
    """The first process has `end` of 101 features, the second one the others."""
    features = features_like(101, 20, seed=2) + 100 * np.linspace(0, 1, 101)[:, None]

    def share(rank: int) -> None:
        moments = streamed(np.split(features, [end])[rank])
        moments.reduce()
        assert_close(moments.statistics(), statistics_of(features), 1e-12)
        nothing = streamed(features[:0])
        nothing.reduce()
        assert nothing.count == 0

    in_two(share, tmp_path)


@pytest.mark.parametrize(("count", "relative"), [(2000, 1e-6), (90, 1e-3)], ids=["full rank", "singular"])
def test_distance_is_torch_fidelitys(count: int, relative: float) -> None:
    a, b = statistics_of(features_like(count, 256, 1)), statistics_of(1.1 * features_like(count + 40, 256, 2) + 0.05)
    assert frechet_distance(a, b) == pytest.approx(torch_fidelity(a, b), rel=relative)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_distance_of_gaussians_with_a_common_basis() -> None:
    """With diagonal covariances it is |m - m'|² + Σ (s - s')²."""
    s, t = np.linspace(0, 3, 20), np.linspace(2, 1, 20)
    a, b = Statistics(2, np.zeros(20), np.diag(s**2)), Statistics(2, np.full(20, 0.5), np.diag(t**2))
    assert frechet_distance(a, b) == pytest.approx(20 * 0.25 + np.square(s - t).sum(), rel=1e-12)


@pytest.mark.parametrize(("count", "dimension", "decay"), [
    (100, 512, 4.0), (513, 512, 9.0), (3000, 512, 20.0), pytest.param(3000, 2048, 4.0, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_set_has_no_distance_to_itself(count: int, dimension: int, decay: float) -> None:
    """Also in other batches, for singular and badly conditioned covariances."""
    features = features_like(count, dimension, seed=3, decay=decay).astype(np.float32)
    a = streamed(features).statistics()
    assert np.trace(a.covariance) > 10
    assert frechet_distance(a, a) < 1e-6
    assert frechet_distance(a, streamed(features, *range(64, count, 64)).statistics()) < 1e-6


def test_distance_is_never_nan() -> None:
    a = statistics_of(features_like(50, 16, seed=4))
    still = Statistics(9, a.mean, np.zeros((16, 16)))
    assert frechet_distance(a, still) == pytest.approx(np.trace(a.covariance), rel=1e-12)
    assert frechet_distance(still, still) == 0
    for scale in (1e-150, 1e-30, 1e30, 1e120):
        b = Statistics(50, a.mean * scale, a.covariance * scale**2)
        assert frechet_distance(b, b) <= 1e-12 * np.trace(b.covariance)
    with pytest.raises(UserError, match="too large for a distance"):
        frechet_distance(a, Statistics(50, np.full(16, 1e200), a.covariance))


def test_eigenvalues_below_zero_are_ignored() -> None:
    """Covariances stored with few digits have them."""
    rounded = statistics_of(features_like(100, 256, seed=5)).covariance.astype(np.float16).astype(np.float64)
    values = np.linalg.eigvalsh(rounded)
    assert values[0] < -1e-5
    a, b = Statistics(100, np.zeros(256), rounded), Statistics(100, np.zeros(256), np.eye(256))
    expected = values.sum() + 256 - 2 * np.sqrt(values.clip(min=0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_small_singular_values_are_not_lost() -> None:
    """As roots of eigenvalues, rounding of 1e-16 would make them 1e-8."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(400, 400)))[0] for _ in range(2))
    values = np.where(np.arange(400) < 20, 1.0, 1e-9)
    assert _nuclear_norm(torch.from_numpy(left * values @ right)) == pytest.approx(values.sum(), rel=1e-9)


def labeled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) around a center of their class, in no order; classes 0, 2 and 3."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize([0, 2, 3, 3], count))
    return (rng.normal(size=(count, 6)) + labels[:, None] + 0.1 * seed).astype(np.float32), labels


def test_intra_fid_is_the_mean_over_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class has torch-fidelity's FID; features may be memory-mapped."""
    monkeypatch.setattr(fid, "BATCH", 7)
    (x, x_labels), (y, y_labels) = labeled(400, 0), labeled(300, 1)
    np.save(tmp_path / "x.npy", x)
    mean, distances = intra_fid(np.load(tmp_path / "x.npy", mmap_mode="r"), x_labels, y, y_labels)
    assert list(distances) == [0, 2, 3]
    for label, distance in distances.items():
        of_class = (
            statistics_of(z[labels == label].astype(np.float64)) for z, labels in ((x, x_labels), (y, y_labels))
        )
        assert distance == pytest.approx(torch_fidelity(*of_class), rel=1e-6)
    assert mean == pytest.approx(np.mean(list(distances.values())))

"""Streamed statistics and the Fréchet distance, against NumPy and torch-fidelity."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from sagan.evaluation.fid import (
    Moments,
    Statistics,
    _nuclear_norm,
    float64_device,
    frechet_distance,
    load_statistics,
    save_statistics,
)
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
    from torch_fidelity.metric_fid import fid_statistics_to_metric  # here: the two processes need not wait for it

    parts = ({"mu": s.mean, "sigma": s.covariance} for s in (a, b))
    return fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"]


def assert_close(found: Statistics, expected: Statistics, relative: float) -> None:
    assert found.count == expected.count
    for here, there in ((found.mean, expected.mean), (found.covariance, expected.covariance)):
        assert here.dtype == np.float64
        assert np.abs(here - there).max() <= relative * np.abs(there).max()


def test_streamed_statistics_are_those_of_the_whole() -> None:
    """Breaks when batches of different sizes (empty and single ones too) are weighed wrongly, or the divisor is N."""
    features = features_like(300, 40, seed=0)
    assert_close(streamed(features, 1, 1, 2, 130, 299).statistics(), statistics_of(features), 1e-12)
    assert_close(streamed(features.astype(np.float32), 64, 128).statistics(), statistics_of(features), 1e-6)


def test_a_large_mean_costs_no_digits() -> None:
    """Breaks when the covariance is E[xxᵀ] - mmᵀ: at a mean of 1e8 nothing of a variance of 1 would be left."""
    features = np.random.default_rng(0).normal(1e8, 1, (500, 8))
    found = streamed(features, *range(50, 500, 50)).statistics()
    exact = np.cov(features - 1e8, rowvar=False)
    assert np.abs(found.covariance - exact).max() < 1e-6
    assert np.abs(found.mean - 1e8 - (features - 1e8).mean(0)).max() < 1e-6


def test_statistics_do_not_change_afterwards() -> None:
    """Breaks when they share memory with sums that go on."""
    moments = streamed(features_like(20, 4, seed=0))
    before = moments.statistics()
    kept = before.mean.copy(), before.covariance.copy()
    moments.update(torch.ones(5, 4))
    assert np.array_equal(before.mean, kept[0])
    assert np.array_equal(before.covariance, kept[1])
    assert moments.statistics().count == 25


def test_mps_sums_on_the_cpu() -> None:
    """Breaks when float64 is asked of a device that has none."""
    assert float64_device("mps") == torch.device("cpu")
    assert float64_device("cuda") == torch.device("cuda")


def share(rank: int, folder: str) -> None:
    """One of two processes: takes its part of the features, uneven and then none at all, and adds up."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    features = features_like(101, 20, seed=2) + 100 * np.linspace(0, 1, 101)[:, None]
    for name, end in (("uneven", 30), ("idle", 101)):
        moments = streamed(np.split(features, [end])[rank])
        moments.reduce()
        save_statistics(Path(folder) / f"{name}{rank}.npz", moments.statistics(), {})
    nothing = streamed(features[:0])
    nothing.reduce()
    assert nothing.count == 0
    dist.destroy_process_group()


def test_two_processes_add_up(tmp_path: Path) -> None:
    """Breaks when processes weigh each other wrongly, leave out how far their means are apart, or one without images
    spoils the sum or does not take part."""
    spawn(share, (str(tmp_path),), nprocs=2)
    whole = statistics_of(features_like(101, 20, seed=2) + 100 * np.linspace(0, 1, 101)[:, None])
    for name in ("uneven", "idle"):
        for rank in range(2):
            assert_close(load_statistics(tmp_path / f"{name}{rank}.npz")[0], whole, 1e-12)


def test_one_process_reduces_to_itself() -> None:
    """Breaks when reduce needs a process group."""
    moments = streamed(features_like(20, 4, seed=0))
    before = moments.statistics()
    moments.reduce()
    assert_close(moments.statistics(), before, 0)


@pytest.mark.parametrize(("count", "relative"), [(2000, 1e-6), (90, 1e-3)], ids=["full rank", "singular"])
def test_distance_is_torch_fidelitys(count: int, relative: float) -> None:
    """Breaks when a term of the distance is wrong, or eigenvalues below zero or of a singular matrix come in."""
    a, b = statistics_of(features_like(count, 256, 1)), statistics_of(1.1 * features_like(count + 40, 256, 2) + 0.05)
    assert frechet_distance(a, b) == pytest.approx(torch_fidelity(a, b), rel=relative)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_distance_of_gaussians_with_a_common_basis() -> None:
    """Breaks when the formula is another: with diagonal covariances it is |m - m'|² + Σ (s - s')²."""
    s, t = np.linspace(0, 3, 20), np.linspace(2, 1, 20)
    a, b = Statistics(2, np.zeros(20), np.diag(s**2)), Statistics(2, np.full(20, 0.5), np.diag(t**2))
    assert frechet_distance(a, b) == pytest.approx(20 * 0.25 + np.square(s - t).sum(), rel=1e-12)


@pytest.mark.parametrize(("count", "dimension", "decay"), [
    (500, 2048, 4.0), (3000, 2048, 4.0), (100, 512, 4.0), (513, 512, 9.0), (3000, 512, 20.0),
])  # fmt: skip
def test_a_set_is_no_distance_from_itself(count: int, dimension: int, decay: float) -> None:
    """Breaks when small singular values are lost by squaring, of singular and of badly conditioned covariances."""
    features = features_like(count, dimension, seed=3, decay=decay).astype(np.float32)
    a = streamed(features).statistics()
    assert np.trace(a.covariance) > 10
    assert frechet_distance(a, a) < 1e-6
    if dimension < 2048:  # the same set in other batches
        assert frechet_distance(a, streamed(features, *range(64, count, 64)).statistics()) < 1e-6


def test_distance_is_never_nan() -> None:
    """Breaks on sets of one repeated image, tiny or huge features, or a covariance with eigenvalues below zero."""
    a = statistics_of(features_like(50, 16, seed=4))
    still = Statistics(9, a.mean, np.zeros((16, 16)))
    assert frechet_distance(a, still) == pytest.approx(np.trace(a.covariance), rel=1e-12)
    assert frechet_distance(still, still) == 0
    for scale in (1e-150, 1e-30, 1e30, 1e120):
        b = Statistics(50, a.mean * scale, a.covariance * scale**2)
        assert frechet_distance(b, b) <= 1e-12 * np.trace(b.covariance)
    with pytest.raises(UserError, match="too large for a distance"):
        frechet_distance(a, Statistics(50, np.full(16, 1e200), a.covariance))


def test_eigenvalues_below_zero_are_left_out() -> None:
    """Breaks when a covariance that was stored with few digits is factored as if it were sound."""
    rounded = statistics_of(features_like(100, 256, seed=5)).covariance.astype(np.float16).astype(np.float64)
    values = np.linalg.eigvalsh(rounded)
    assert values[0] < -1e-5
    a, b = Statistics(100, np.zeros(256), rounded), Statistics(100, np.zeros(256), np.eye(256))
    expected = values.sum() + 256 - 2 * np.sqrt(values.clip(min=0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_small_singular_values_are_not_lost() -> None:
    """Breaks when they are the roots of eigenvalues, which rounding of 1e-16 makes 1e-8."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(400, 400)))[0] for _ in range(2))
    values = np.where(np.arange(400) < 20, 1.0, 1e-9)
    assert _nuclear_norm(torch.from_numpy(left * values @ right)) == pytest.approx(values.sum(), rel=1e-9)

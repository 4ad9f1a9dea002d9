"""KID, Inception Score, precision, recall, density and coverage: against torch-fidelity and against literal loops."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sagan.evaluation import feature_metrics
from sagan.evaluation.feature_metrics import Manifold, inception_score, kid, manifold
from sagan.utils.errors import UserError


def clouds(n: int, m: int, dimension: int, apart: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features of samples and reference: on curved sheets `apart`, of different width."""
    rng = np.random.default_rng(n + m)
    mixing = rng.normal(size=(8, dimension))
    x, y = rng.normal(apart, 0.9, (n, 8)), rng.normal(0, 1, (m, 8))
    return tuple(np.maximum(z @ mixing, 0).astype(np.float32) for z in (x, y))  # type: ignore[return-value]


def literal_manifold(samples: np.ndarray, reference: np.ndarray, k_precision: int, k_density: int) -> Manifold:
    """The definitions, point by point, in float64."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.sum((a.astype(np.float64) - b) ** 2)))

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    n, m = len(samples), len(reference)
    ours = [radius(samples, i, k_precision) for i in range(n)]
    theirs = [radius(reference, j, k_precision) for j in range(m)]
    wide = [radius(reference, j, k_density) for j in range(m)]
    apart = [[distance(x, y) for y in reference] for x in samples]
    return Manifold(
        sum(any(apart[i][j] <= theirs[j] for j in range(m)) for i in range(n)) / n,
        sum(any(apart[i][j] <= ours[i] for i in range(n)) for j in range(m)) / m,
        sum(apart[i][j] < wide[j] for i in range(n) for j in range(m)) / (k_density * n),
        sum(any(apart[i][j] < wide[j] for i in range(n)) for j in range(m)) / m,
    )


@pytest.mark.parametrize(
    ("n", "subsets", "size", "seed"), [(300, 10, 100, 2020), (300, 3, 250, 5), (60, 4, 1000, 2020)]
)
def test_kid_is_torch_fidelitys(tmp_path: Path, n: int, subsets: int, size: int, seed: int) -> None:
    """Features may be memory-mapped; subsets are at most as large as a set."""
    x, y = clouds(n, 400, 64)
    np.save(tmp_path / "x.npy", x)
    expected = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y),
        kid_subsets=subsets, kid_subset_size=min(size, n), rng_seed=seed, verbose=False,
    )  # fmt: skip
    found = kid(np.load(tmp_path / "x.npy", mmap_mode="r"), y, subsets, size, seed)
    assert found == pytest.approx(tuple(expected.values()), rel=1e-3)


def test_kid_of_one_distribution_is_about_zero() -> None:
    x, y = clouds(2000, 2000, 32, apart=0)
    x[:1000], y[:1000] = y[:1000].copy(), x[:1000].copy()  # now of one distribution
    mean, deviation = kid(x, y, subsets=20, subset_size=200)
    assert abs(mean) < deviation
    assert kid(x, x + 1, subsets=5, subset_size=200)[0] > 5 * deviation


@pytest.mark.parametrize(("count", "splits"), [(1000, 10), (103, 10), (7, 7), (40, 1)])
def test_inception_score_is_torch_fidelitys(count: int, splits: int) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (count, 20)).astype(np.float32)
    expected = isc_features_to_metric(torch.from_numpy(logits), splits)
    assert inception_score(logits, splits) == pytest.approx(tuple(expected.values()), rel=1e-9)


def test_inception_score_of_known_predictions() -> None:
    """Certain predictions score the number of classes; torch-fidelity gives NaN if some class is never predicted."""
    certain = np.eye(10, dtype=np.float32)[np.arange(5000) % 10] * 2000
    assert inception_score(certain, splits=1) == pytest.approx((10.0, 0.0))
    never = np.eye(10, dtype=np.float32)[np.arange(5000) % 5] * 2000
    assert inception_score(never, splits=1) == pytest.approx((5.0, 0.0))
    assert inception_score(np.ones((50, 10), np.float32)) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize(("n", "m", "block"), [(300, 410, 2048), (110, 90, 40), (61, 34, 10)])
def test_manifold_is_torch_fidelitys_and_the_definition(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, block: int
) -> None:
    monkeypatch.setattr(feature_metrics, "BLOCK", block)
    x, y = clouds(n, m, 48)
    expected = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    found = manifold(x, y)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)
    if block < 2048:
        assert found == literal_manifold(x, y, 3, 5)


@pytest.mark.parametrize(("n", "m", "k_precision", "k_density"), [(60, 50, 1, 1), (60, 50, 5, 2), (6, 6, 3, 5)])
def test_manifold_with_other_neighbors(n: int, m: int, k_precision: int, k_density: int) -> None:
    x, y = clouds(n, m, 12)
    assert manifold(x, y, k_precision, k_density) == literal_manifold(x, y, k_precision, k_density)


def test_ties_are_as_in_the_definition() -> None:
    """On a grid, many features are equal, and many lie exactly on a radius."""
    x, y = (np.random.default_rng(i).integers(0, 3, (60 + i, 6)).astype(np.float32) for i in range(2))
    assert manifold(x, y) == literal_manifold(x, y, 3, 5)
    assert manifold(x, y, 1, 1) == literal_manifold(x, y, 1, 1)


def test_a_set_is_its_own_manifold() -> None:
    """Every k-th neighbor lies on the border of its ball. At 1000, float32 products resolve no distance below 1."""
    x = clouds(500, 1, 64)[0] + 1000
    assert manifold(x, x) == (1.0, 1.0, 1.0, 1.0)
    assert manifold(x, np.random.default_rng(0).permutation(x)) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("offset", [0, 3000])
def test_near_copies_and_large_offsets_are_resolved(offset: float) -> None:
    x, y = clouds(60, 70, 32)
    x[:20], x[20:25] = y[:20], x[30]
    y[30:34] = y[35]
    x, y = x + np.float32(offset), y + np.float32(offset)
    x[40:50] += np.float32(1e-3) * np.arange(10, dtype=np.float32)[:, None]
    assert manifold(x, y) == literal_manifold(x, y, 3, 5)


def test_low_precision_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products may be in TF32."""
    x, y = clouds(200, 210, 64)
    expected, exact = manifold(x, y), feature_metrics._rough

    def rounded(*arguments: torch.Tensor) -> torch.Tensor:
        squared = exact(*arguments)
        noise = torch.empty_like(squared).uniform_(-1e-2, 1e-2, generator=torch.Generator().manual_seed(0))
        return squared + noise * (arguments[2][:, None] + arguments[3])

    monkeypatch.setattr(feature_metrics, "_rough", rounded)
    assert manifold(x, y) == expected


def test_collapse_is_detected() -> None:
    x, y = clouds(100, 300, 32)
    found = manifold(np.repeat(y[:1], 100, axis=0), y)
    assert found.precision == 1
    assert found.recall <= 1 / 300
    assert found.coverage < 0.1
    assert manifold(x + 1000, y) == (0, 0, 0, 0)


@pytest.mark.parametrize("score", [kid, manifold])
def test_huge_features_are_refused(score: Callable) -> None:
    x, y = clouds(30, 40, 8)
    with pytest.raises(UserError, match=r"^the samples: features are above 1e"):
        score(x * np.float32(1e30), y)
    with pytest.raises(UserError, match=r"^the reference: features are above 1e"):
        score(x, y * np.float32(1e30))

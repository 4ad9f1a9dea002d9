"""KID, Inception Score, precision and recall, density and coverage, from the features of two sets.

Features are arrays (N, D), possibly memory-mapped; logits (N, K). Random subsets are those of torch-fidelity. Its
`*_features_to_metric` are not used: they sum in float32 (on Inception features their KID differs by 5e-9 to 3e-7,
precision and recall in the last float32 digit), give NaN for a class that is never predicted, copy all features into
memory, and have neither density nor coverage.
"""

from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagan.evaluation.fid import float64_device
from sagan.utils.errors import UserError
from sagan.utils.progress import Progress, track

BLOCK = 2048  # rows and columns of a block of distances
SPARE = 3  # extra candidates for the nearest neighbors, in case rounding swapped their order
ROUNDING = 1e-5  # of squared distances from a float32 matrix product, relative to |x|² + |y|²; 1e-6 was observed
CHUNK = 1 << 19  # numbers in a block of differences
LARGEST = 1e15  # the squares of larger features overflow in float32 sums


class Manifold(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage); 0 to 1, only density can exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def kid(
    samples: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Kernel inception distance: mean and standard deviation of MMD² over random subsets.

    Demystifying MMD GANs. Bińkowski, Sutherland, Arbel, Gretton. 2018, arXiv:1801.01401, section 4. Equal distributions
    give values around 0, also negative ones. Both sets have at least 2 images; subsets are at most as large as the
    smaller set. UserError for huge features.
    """
    _check(samples, reference)
    size = min(len(samples), len(reference), subset_size)
    rng = np.random.RandomState(seed)  # like torch-fidelity
    values = []
    for _ in track(range(subsets), subsets, "KID"):
        drawn = [features[rng.choice(len(features), size, replace=False)] for features in (samples, reference)]
        both = np.concatenate(drawn).astype(np.float32, copy=False)  # (2m, D)
        kernel = both @ both.T  # (2m, 2m); NumPy computes one half of it
        kernel /= both.shape[1]
        kernel += 1
        kernel *= kernel * kernel  # (xᵀy / D + 1)³
        # The unbiased estimate of MMD²: A Kernel Two-Sample Test, Gretton et al. 2012, eq. 3.
        blocks = kernel[:size, :size], kernel[size:, size:]
        within = sum(k.sum(dtype=np.float64) - k.trace(dtype=np.float64) for k in blocks)
        values.append(within / (size * (size - 1)) - 2 * kernel[:size, size:].mean(dtype=np.float64))
    return float(np.mean(values)), float(np.std(values))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation of exp(E KL(p(y|x) || p(y))) over `splits` parts of the shuffled images.

    Improved Techniques for Training GANs. Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen. 2016, arXiv:1606.03498,
    section 4. At least as many images as parts.
    """
    order = np.random.RandomState(seed).permutation(len(logits))  # like torch-fidelity
    scores = []
    for part in range(splits):
        chosen = order[part * len(logits) // splits : (part + 1) * len(logits) // splits]
        log_p = torch.from_numpy(logits[chosen]).double().log_softmax(1)  # (n, K)
        log_mean = log_p.logsumexp(0) - np.log(len(chosen))  # (K,)
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


@torch.no_grad()
def manifold(
    samples: np.ndarray,
    reference: np.ndarray,
    k_precision: int = 3,
    k_density: int = 5,
    device: torch.device | str = "cpu",
) -> Manifold:
    """Precision and recall with k_precision neighbors, density and coverage with k_density.

    Improved Precision and Recall Metric for Assessing Generative Models. Kynkäänniemi, Karras, Laine, Lehtinen, Aila.
    2019, arXiv:1904.06991. Reliable Fidelity and Diversity Metrics for Generative Models. Naeem, Oh, Uh, Choi, Yoo.
    2020, arXiv:2002.09797. Balls are closed in the former and open in the latter, as in the authors' code.

    Distances come from matrix products in blocks; those so close to a radius that rounding could decide are recomputed
    from differences. Memory: twice the two sets, and blocks of BLOCK². Both sets have more than k images. UserError
    for huge features.
    """
    _check(samples, reference)
    device = float64_device(device)
    x, y = (torch.tensor(features, dtype=torch.float32, device=device) for features in (samples, reference))
    n, m = len(_spans(x)), len(_spans(y))
    with Progress(n * (n + 1) // 2 + m * (m + 1) // 2 + n * m, "precision, recall, density, coverage") as progress:
        ours, error = _nearest(x, k_precision, progress)
        theirs, other_error = _nearest(y, max(k_precision, k_density), progress)
        radii = ours[:, k_precision - 1], theirs[:, k_precision - 1], theirs[:, k_density - 1]  # squared
        return _inside(x, y, radii, k_density, max(ROUNDING, 4 * error, 4 * other_error), progress)


def _inside(
    x: Tensor, y: Tensor, radii: tuple[Tensor, Tensor, Tensor], k_density: int, rounding: float, progress: Progress
) -> Manifold:
    """Compare every sample (N, D) with every reference point (M, D): which is inside whose ball?

    Precision and recall are the means (Kynkäänniemi et al. 2019, eq. 2) of being in any ball of the other set (eq. 1).
    `radii`: of samples (N,) and reference (M,) for these, of the reference (M,) for density and coverage.
    """
    a, b = x - y.mean(0), y - y.mean(0)
    a_norms, b_norms = a.square().sum(1), b.square().sum(1)
    precise, recalled, covered = (torch.zeros(len(z), dtype=torch.bool, device=z.device) for z in (x, y, y))
    pairs = 0
    for i in _spans(x):
        for j in _spans(y):
            squared = _rough(a[i], b[j], a_norms[i], b_norms[j])
            margin = rounding * (a_norms[i, None] + b_norms[j])
            limits = (radii[0][i, None], radii[1][j], radii[2][j])
            unsure = torch.zeros_like(squared, dtype=torch.bool)
            for limit in limits:
                unsure |= (squared - limit).abs_() <= margin
            row, column = unsure.nonzero(as_tuple=True)
            squared[row, column] = _exact(x[i], y[j], row, column)
            recalled[j] |= (squared <= limits[0]).any(0)
            precise[i] |= (squared <= limits[1]).any(1)
            open_balls = squared < limits[2]
            covered[j] |= open_balls.any(0)
            pairs += open_balls.sum().item()
            progress.advance()
    precision, recall, coverage = (found.double().mean().item() for found in (precise, recalled, covered))
    return Manifold(precision, recall, pairs / (k_density * len(x)), coverage)  # Naeem et al. 2020, section 3


def _nearest(points: Tensor, k: int, progress: Progress) -> tuple[Tensor, float]:
    """Squared distances of points (N, D) to their 1st … k-th nearest others, float32 (N, k).

    Also returns the largest error of `_rough` in them, relative to |x|² + |y|².
    """
    centered = points - points.mean(0)
    norms, wanted = centered.square().sum(1), min(k + SPARE, len(points) - 1)
    rough = norms.new_full((len(points), wanted), torch.inf)
    places = torch.zeros_like(rough, dtype=torch.long)
    for i, j in combinations_with_replacement(_spans(points), 2):
        squared = _rough(centered[i], centered[j], norms[i], norms[j])
        if i == j:
            squared.fill_diagonal_(torch.inf)
        else:
            _keep_nearest(rough[j], places[j], squared.T, i.start)
        _keep_nearest(rough[i], places[i], squared, j.start)
        progress.advance()
    rows = torch.arange(len(points), device=points.device)[:, None].expand_as(places)
    exact = _exact(points, points, rows.flatten(), places.flatten()).view_as(rough)
    error = (rough - exact).abs() / (norms[rows] + norms[places]).clamp(min=1e-30)
    return exact.sort(1).values[:, :k], error.max().item()


def _keep_nearest(best: Tensor, places: Tensor, squared: Tensor, start: int) -> None:
    """Merge squared (B, C), whose first column has index `start`, into best (B, k), ascending, and its places."""
    k = best.shape[1]
    near, where = squared.topk(min(k, squared.shape[1]), largest=False)
    kept, order = torch.cat([best, near], 1).topk(k, largest=False)
    best.copy_(kept)
    places.copy_(torch.cat([places, where + start], 1).gather(1, order))


def _rough(a: Tensor, b: Tensor, a_norms: Tensor, b_norms: Tensor) -> Tensor:
    """|a|² + |b|² - 2 aᵀb: squared distances (A, B), up to rounding, possibly negative."""
    return torch.addmm(b_norms, a, b.T, alpha=-2).add_(a_norms[:, None])


def _exact(x: Tensor, y: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Squared distances of pairs x[row], y[column], float32 (P,), from differences: symmetric in x and y."""
    parts = []
    for chosen in torch.arange(len(row), device=row.device).split(max(1, CHUNK // x.shape[1])):
        apart = x[row[chosen]] - y[column[chosen]]
        parts.append(apart.square_().sum(1, dtype=torch.float64).float())
    return torch.cat(parts)


def _spans(points: Tensor) -> list[slice]:
    return [slice(start, min(start + BLOCK, len(points))) for start in range(0, len(points), BLOCK)]


def _check(samples: np.ndarray, reference: np.ndarray) -> None:
    """UserError for features whose squares would overflow."""
    for name, features in (("the samples", samples), ("the reference", reference)):
        if not all(np.abs(features[start : start + BLOCK]).max() < LARGEST for start in range(0, len(features), BLOCK)):
            raise UserError(f"{name}: features are above {LARGEST:g}; did the generator diverge?")

"""Fréchet distance between two sets of features, from means and covariances, and files of these statistics.

GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium. Heusel, Ramsauer, Unterthiner,
Nessler, Hochreiter. 2017, arXiv:1706.08500. All sums and factorizations are in float64.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file, member_names, read_arrays
from sagan.utils.progress import track

EPS = float(np.finfo(np.float64).eps)
STORED = ("mean", "covariance", "count", "about")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of `count` features; a count of 0 is unknown."""

    count: int
    mean: np.ndarray  # float64 (D,)
    covariance: np.ndarray  # float64 (D, D), divisor count - 1


class Moments:
    """Streaming statistics of features that arrive in batches.

    Updating formulae and a pairwise algorithm for computing sample variances. Chan, Golub, LeVeque. 1979: a large mean
    costs no precision. The sums are on `device`, or on the CPU instead of MPS, which has no float64.
    """

    def __init__(self, dimension: int, device: torch.device | str) -> None:
        self.device = float64_device(device)
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=self.device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=self.device)  # Σ (x - mean)²

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch (B, D), which may be empty."""
        if not len(features):
            return
        features = features.to(self.device).double()
        total, mean = self.count + len(features), features.mean(0)
        apart = mean - self.mean
        between = math.sqrt(self.count * len(features) / total) * apart  # Chan et al. 1979, sec. 2, as one more row
        rows = torch.cat([features - mean, between[None]])  # (B + 1, D)
        self.scatter.addmm_(rows.T, rows)
        self.mean += apart * (len(features) / total)
        self.count = total

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum over the processes; each calls it once, after its last batch, even without images."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        count = torch.tensor(float(self.count), dtype=torch.float64, device=self.device)
        mean = self.mean * count
        dist.all_reduce(count)
        dist.all_reduce(mean)
        mean /= count.clamp(min=1)
        self.scatter.addr_(self.mean - mean, self.mean - mean, alpha=self.count)
        dist.all_reduce(self.scatter)
        self.count, self.mean = int(count), mean

    def statistics(self) -> Statistics:
        """Statistics of all batches so far, which have at least two images."""
        covariance = (self.scatter + self.scatter.T) / (2 * (self.count - 1))
        return Statistics(self.count, self.mean.cpu().numpy().copy(), covariance.cpu().numpy())


def float64_device(device: torch.device | str) -> torch.device:
    """`device`, or the CPU instead of MPS, which has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), squared as in the literature (Heusel et al. 2017, eq. 6).

    Covariances may be singular. For C_a = F Fᵀ and C_b = H Hᵀ, C_a C_b has the eigenvalues of (Fᵀ H)(Fᵀ H)ᵀ, so the
    trace of its root is the sum of the singular values of Fᵀ H.
    """
    apart = a.mean - b.mean
    with np.errstate(over="ignore", invalid="ignore"):
        product = torch.from_numpy(_factor(a.covariance).T @ _factor(b.covariance))  # (rank of C_a, rank of C_b)
        scale = product.abs().max().item() if product.numel() else 0.0
        trace_of_root = scale * _nuclear_norm(product / scale) if 0 < scale < math.inf else scale
        traces = np.trace(a.covariance) + np.trace(b.covariance)
        distance = apart @ apart + traces - 2 * trace_of_root
    if not np.isfinite(distance):
        raise UserError("fid: the features are too large for a distance in float64; did the generator diverge?")
    return max(float(distance), 0.0)  # negative only by rounding


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (D, rank) with F Fᵀ = C.

    By Cholesky decomposition; with pivoting if C is (nearly) singular, which stops at the rank and so is cheap for few
    images; from eigenvectors if C has eigenvalues below zero beyond rounding (statistics stored in float32).
    """
    plain, failed = torch.linalg.cholesky_ex(torch.tensor(covariance))
    if not failed and plain.diagonal().min() > math.sqrt(EPS) * plain.diagonal().max():
        return plain.numpy()
    (pstrf,) = get_lapack_funcs(("pstrf",), (covariance,))
    triangle, pivots, rank, _ = pstrf(covariance, lower=1)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    left_over = covariance.diagonal() - np.square(factor).sum(1)
    if left_over.min() >= -1e-10 * covariance.diagonal().max():
        return factor
    values, vectors = (tensor.numpy() for tensor in torch.linalg.eigh(torch.tensor(covariance)))
    kept = values > len(values) * EPS * np.abs(values).max()
    return vectors[:, kept] * np.sqrt(values[kept])


def _nuclear_norm(matrix: Tensor) -> float:
    """Sum of the singular values, to at least 8 digits.

    The roots of the eigenvalues of MᵀM are several times faster than an SVD, but small ones lose precision. Falls back
    to the SVD if a bound on that error exceeds 3e-9 of the sum.
    """
    gram = matrix.T @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.T
    squares = torch.linalg.eigvalsh(gram)
    values, rounding = squares.clamp(min=0).sqrt(), 4 * EPS * squares[-1]
    error = (rounding / (2 * values)).clamp(max=rounding.sqrt()).sum()
    if error <= 3e-9 * values.sum():
        return values.sum().item()
    return torch.linalg.svdvals(matrix).sum().item()


def save_statistics(path: Path, statistics: Statistics, about: dict[str, Any]) -> None:
    """Write an .npz of mean, covariance, count, `about` as JSON and a SHA-256 of the four, atomically."""
    text = json.dumps(about, sort_keys=True)
    values = (statistics.mean, statistics.covariance, np.array(statistics.count), np.array(text))
    arrays = dict(zip(STORED, values, strict=True))
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, sha256=np.array(_digest(arrays)))  # type: ignore[arg-type]


def load_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """Read the statistics and `about` of a file by `save_statistics`, or by other programs (arrays `mu` and `sigma`).

    The latter have count 0 and an empty `about`. UserError for a file that is missing, damaged, or of another kind;
    nothing is unpickled.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such statistics file")
    names, count, about = member_names(path), 0, {}
    ours = names.issuperset((*STORED, "sha256"))
    if names and not ours and not names.issuperset(("mu", "sigma")):
        raise UserError(
            f"{path}: holds neither `mean` and `covariance` nor `mu` and `sigma`; expected a statistics file"
        )
    try:
        arrays = read_arrays(path, (*STORED, "sha256") if ours else ("mu", "sigma"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not readable as statistics (.npz): {error}") from None
    if ours:
        if arrays["sha256"].tolist() != _digest(arrays):
            raise UserError(f"{path}: damaged, its checksum does not match; create or fetch it again")
        try:
            count, about = int(arrays["count"]), json.loads(str(arrays["about"]))
        except (TypeError, ValueError, OverflowError, RecursionError):
            about = None
        if count < 2 or not isinstance(about, dict) or not str(about.get("name", "")).isprintable():
            raise UserError(f"{path}: its count or description is invalid; create it again")
    mean, covariance = (arrays[name] for name in (("mean", "covariance") if ours else ("mu", "sigma")))
    if {mean.dtype.kind, covariance.dtype.kind} != {"f"} or mean.ndim != 1 or covariance.shape != (mean.size or 1,) * 2:
        shapes = f"{mean.dtype} {mean.shape} and {covariance.dtype} {covariance.shape}"
        raise UserError(f"{path}: mean and covariance are {shapes}, expected floats (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: holds values that are not finite; create it again")
    if np.abs(covariance - covariance.T).max() > 1e-4 * np.abs(covariance).max() or covariance.diagonal().min() < 0:
        raise UserError(f"{path}: its covariance is not symmetric or has a negative variance; create it again")
    return Statistics(count, mean.astype(np.float64), covariance.astype(np.float64)), about


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in STORED:
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


BATCH = 1024  # features read at a time


def intra_fid(
    features: np.ndarray, labels: np.ndarray, reference_features: np.ndarray, reference_labels: np.ndarray
) -> tuple[float, dict[int, float]]:
    """FID within each class: their mean (Zhang et al. 2018, section 4), and these by class.

    Features (N, D) may be memory-mapped; labels are integers (N,). Both sets have at least two images of every class.
    Statistics are computed class by class: those of 1000 classes of 2048 features would fill 34 GB.
    """

    def within(features: np.ndarray, labels: np.ndarray, label: int) -> Statistics:
        moments, rows = Moments(features.shape[1], "cpu"), np.flatnonzero(labels == label)
        for start in range(0, len(rows), BATCH):
            moments.update(torch.from_numpy(features[rows[start : start + BATCH]]))
        return moments.statistics()

    classes = np.unique(labels).tolist()
    distances = {
        k: frechet_distance(within(features, labels, k), within(reference_features, reference_labels, k))
        for k in track(classes, len(classes), "FID of each class")
    }
    return float(np.mean(list(distances.values()))), distances

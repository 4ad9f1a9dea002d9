"""All rows of an attention map in few bytes, for the attention page: every weight within 1/510 of its row's peak.

A map of N query cells over M keys holds N·M weights, and rows of neighbouring cells are much alike. Two forms; the
smaller one that keeps the bound is taken, and the bound is checked on what the reader will compute:

- "factors": log weights, less their row's mean, are q·k, of the rank of the query width. So two matrices of integers,
  A (N, r) and B (M, r), say them all: weight / peak = exp(step · (A_i·B_j - max_j A_i·B_j)).
- "bytes": one byte a weight, weight / peak in 255ths; of maps with negative weights, in 127.5ths, within 1/255.

Beside either stand the rows' peaks, float32. Everything is deflated (zlib).
"""

import zlib
from dataclasses import dataclass

import numpy as np

from sagan.randomness import numpy_generator

BOUND = 1 / 510  # of a row's peak: half a step of a byte
RANK = 128  # largest query width that factors are tried for
SPARE = 16  # directions beyond RANK in the sketch of the matrix
SMALLEST = 1e-38  # weights below are rounding
LARGEST_INTEGER = 2**15 - 1
NEGLIGIBLE = BOUND / 64  # in a logit
TRIES = 6  # step sizes


@dataclass(frozen=True)
class Packed:
    """One map of one image and head."""

    form: str  # "factors" or "bytes"
    signed: bool  # some weights are negative
    shape: tuple[int, int]  # N query cells, M keys
    rank: int  # of factors, else 0
    step: float  # of factors, else 0
    content: bytes  # deflated: N peaks, float32, then A and B (int16) or the bytes (uint8, int8), little-endian
    error: float  # largest |weight - unpacked| of a row in parts of its peak


def pack(weights: np.ndarray) -> Packed:
    """Pack finite weights (N, M)."""
    weights = weights.astype(np.float64)
    signed = bool((weights < 0).any())
    peaks = np.abs(weights).max(axis=1).astype("<f4")
    ratios = weights / np.where(peaks > 0, peaks, 1)[:, None]
    packed = _pack_bytes(ratios, peaks, signed)
    factors = None if signed else _pack_factors(ratios, peaks)
    return packed if factors is None else min(packed, factors, key=lambda form: len(form.content))


def unpack(packed: Packed) -> np.ndarray:
    """The weights (N, M) as the page computes them."""
    content = zlib.decompress(packed.content)
    n, m = packed.shape
    peaks, rest = np.frombuffer(content, "<f4", n), content[4 * n :]
    if packed.form == "factors":
        planes = np.frombuffer(rest, np.uint8).reshape(2, n + m, packed.rank)
        both = (planes[0] | planes[1].astype("<u2") << 8).view("<i2").astype(np.float64)
        return _ratios(both[:n], both[n:], packed.step) * peaks[:, None]
    levels = np.frombuffer(rest, np.uint8).reshape(n, m)
    return (levels.view(np.int8) / 127.5 if packed.signed else levels / 255) * peaks[:, None]


def _pack_bytes(ratios: np.ndarray, peaks: np.ndarray, signed: bool) -> Packed:
    if signed:
        levels = np.rint(127.5 * ratios).clip(-127, 127).astype(np.int8)
        shown = levels / 127.5
    else:
        levels = np.rint(255 * ratios).astype(np.uint8)
        shown = levels / 255
    return Packed(
        form="bytes",
        signed=signed,
        shape=(ratios.shape[0], ratios.shape[1]),
        rank=0,
        step=0.0,
        content=zlib.compress(peaks.tobytes() + levels.tobytes()),
        error=float(np.abs(shown - ratios).max()),
    )


def _pack_factors(ratios: np.ndarray, peaks: np.ndarray) -> Packed | None:
    """None where log weights are of too high a rank, or too large, to keep the bound."""
    if not peaks.all():
        return None
    logits = np.log(np.maximum(ratios, SMALLEST))
    left, right = _balanced_factors(logits - logits.mean(axis=1, keepdims=True))  # (N, r), (M, r)
    if np.abs(_ratios(left, right, 1) - ratios).max() > BOUND / 2:
        return None
    largest = _largest(left, right)
    norms = np.square(left).sum(axis=1).max() + np.square(right).sum(axis=1).max()
    spacing = max(BOUND / np.sqrt(norms + 1e-12), largest / LARGEST_INTEGER)
    for _ in range(TRIES):
        a, b = np.rint(left / spacing), np.rint(right / spacing)
        if _largest(a, b) > LARGEST_INTEGER:
            return None
        used = a.any(axis=0) & b.any(axis=0)
        a, b = a[:, used], b[:, used]
        error = np.abs(_ratios(a, b, spacing**2) - ratios).max()
        if error <= BOUND:
            return _packed_factors(a, b, float(spacing**2), peaks, float(error))
        spacing /= 2**0.5
    return None


def _packed_factors(a: np.ndarray, b: np.ndarray, step: float, peaks: np.ndarray, error: float) -> Packed:
    both = np.concatenate([a, b]).astype("<i2").view("<u2")
    planes = np.stack([both & 255, both >> 8]).astype(np.uint8)  # low bytes, then high bytes: the high ones deflate
    content = zlib.compress(peaks.tobytes() + planes.tobytes(), 9)
    return Packed("factors", False, (len(a), len(b)), a.shape[1], step, content, error)


def _largest(left: np.ndarray, right: np.ndarray) -> float:
    return max(np.abs(left).max(initial=0), np.abs(right).max(initial=0))


def _ratios(left: np.ndarray, right: np.ndarray, step: float) -> np.ndarray:
    """weight / peak (N, M) of factors."""
    logits = left @ right.T
    return np.exp(step * (logits - logits.max(axis=1, keepdims=True)))


def _balanced_factors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, r) and (M, r), r ≤ RANK, whose product is nearest to a matrix: its singular vectors times √singular value.

    A larger matrix is first projected on a random sketch of its range (Halko, Martinsson & Tropp 2011, one power
    iteration): exact to rounding where its rank is at most RANK.
    """
    if min(matrix.shape) <= RANK + SPARE:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        sketch = numpy_generator(0, "attention page").standard_normal((matrix.shape[1], RANK + SPARE))
        basis = np.linalg.qr(matrix @ sketch)[0]
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]  # (N, RANK + SPARE)
        u, s, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    weighty = np.flatnonzero(s * np.abs(u).max(axis=0) * np.abs(v).max(axis=1) > NEGLIGIBLE)[:RANK]
    root = np.sqrt(s[weighty])
    return u[:, weighty] * root, v[weighty].T * root

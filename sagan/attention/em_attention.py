"""Expectation-Maximization Attention Networks for Semantic Segmentation. Li, Zhong, Wu, Yang, Lin, Liu.
arXiv:1907.13426, ICCV 2019.

Differs from the paper: a gain γ; no norm and no last ReLU by default (`norm="batch", relu=True, gain="none"` is the
paper's unit). Differs from the released code: the gradient passes through the iterations unless `gradient="detached"`;
updated bases are normalized again (the code lets them shrink); the momentum of batch norm is 0.1, not 3e-4.
"""

from math import inf

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import feature_map, make_norm, select_points, tokens
from sagan.layers.normalization import HeldState
from sagan.layers.precision import at_least_float32, full_precision

EPS = 1e-6  # of the released code, in both divisions of the M step


class Bases(HeldState):
    """K unit vectors (K, D), the start of the iterations; in training, a moving average of the bases found by them.

    Identical on all processes. An update replaces the buffer's tensor, so graphs of earlier forwards stay valid.
    """

    vectors: Tensor

    def __init__(self, count: int, width: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", torch.empty(count, width))

    @torch.no_grad()
    def draw(self) -> None:
        """Draw from N(0, √(2/K)) and normalize to unit length."""
        self.vectors.normal_(0, (2 / len(self.vectors)) ** 0.5)
        self.vectors.copy_(F.normalize(self.vectors, dim=1))

    @torch.no_grad()
    def follow(self, found: Tensor) -> None:
        """Move towards the mean of `found` (B, K, D) over batch and processes; in training, unless held."""
        if not self.training or self.held:
            return
        mean = found.mean(dim=0)  # (K, D)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(mean)  # a sum serves as the mean: only its direction matters
        mixed = torch.lerp(F.normalize(mean, dim=1), self.vectors.to(mean), self.momentum)
        self.vectors = F.normalize(mixed, dim=1).to(self.vectors.dtype)


class EmAttention(AttentionModule):
    """y = x + γ·W_o ReLU(X̃), γ = 0 at first: the features rebuilt from K bases, found by T steps of EM per image.

    X = W_i x; from the kept bases μ⁰, T times: responsibility estimation Z = softmax_k(λ X μᵀ), likelihood
    maximization μ_k = Σ_n z_nk x_n / Σ_n z_nk, made unit vectors; then data re-estimation X̃ = Z μ (the paper's A_E,
    A_M, A_R). In training, once per unheld forward: μ⁰ <- m·μ⁰ + (1 - m)·mean of μᵀ over batch and processes, unit
    vectors again.

    `bases`: K, may exceed the cells. `iterations`: T. `lam`: λ; the larger, the closer to spherical k-means.
    `momentum`: m. `ratio`: width D of X as a fraction of C. `norm`: after W_o, "none", "batch" or "group". `relu`: the
    paper's last ReLU; with a gain y = x + γ·(ReLU(x + …) - x). `gradient`: "full", through all iterations; "detached",
    as released: X̃ is a constant, so W_i cannot learn and is frozen, and x has the gradient of the identity alone.

    Maps of a query cell q: "attention" Σ_k z_qk z_nk / Σ_m z_mk, sums to 1; "responsibility" z_q. For all cells alike:
    "bases", each basis's z_nk as a map. Time O(N·C·D + T·N·K·D), memory O(N·K), times T for a full gradient.
    """

    map_kinds = {"attention": "softmax row", "responsibility": "responsibility", "bases": "basis map"}

    def __init__(
        self, channels: int, resolution: Size, *, bases: int = 64, iterations: int = 3, lam: float = 1.0,
        gradient: str = "full", momentum: float = 0.9, ratio: float = 1.0, norm: str = "none", relu: bool = False,
        gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(bases >= 1, f"em_attention: bases is {bases}, must be at least 1")
        require(iterations >= 1, f"em_attention: iterations is {iterations}, must be at least 1")
        require(0 < lam < inf, f"em_attention: lam is {lam}, must be above 0 and finite")
        require(0 <= momentum <= 1, f"em_attention: momentum is {momentum}, must lie in [0, 1]")
        require(gradient in ("full", "detached"), f"em_attention: gradient is {gradient!r}; known: full, detached")
        inner = int(channels * ratio) if 0 < ratio < inf else 0
        require(inner >= 1, f"em_attention: {channels} channels times ratio {ratio} must be at least 1")
        self.iterations, self.lam, self.relu, self.detached = iterations, float(lam), relu, gradient == "detached"
        self.inner = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = make_norm(norm, channels)
        self.bases = Bases(bases, inner, momentum)
        self.inner.requires_grad_(not self.detached)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bases as in the paper; convolutions Kaiming by fan-out, as released."""
        for layer in (self.inner, self.out):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        nn.init.zeros_(self.inner.bias)  # type: ignore[arg-type]
        self.bases.draw()

    def forward(self, x: Tensor) -> Tensor:
        features = self.inner(x)  # (B, D, H, W)
        shares, bases = self._expectation_maximization(features)  # (B, N, K), (B, K, D)
        size, width = x.shape[2:], x.shape[3]
        self.record("attention", lambda cells: _composed_rows(shares, cells, size), x.shape)
        self.record("responsibility", lambda c: select_points(shares[:, None], c, width)[..., None, :], x.shape)
        self.record("bases", lambda _: shares.mT.unflatten(2, size)[:, :, None], x.shape)  # (B, K, 1, H, W)
        self.bases.follow(bases)
        with full_precision(x.device):
            estimated = shares @ bases  # (B, N, D)
        estimated = F.relu(feature_map(estimated[:, None].to(features.dtype), *size))
        change = self.norm(self.out(estimated))  # (B, C, H, W)
        return self.blended(x, F.relu(x + change)) if self.relu else self.added(x, change)

    def _expectation_maximization(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, H, W) -> the last responsibilities (B, N, K) and bases (B, K, D), in float32 or wider."""
        x = at_least_float32(tokens(features)[:, 0])  # (B, N, D)
        x = x.detach() if self.detached else x
        with full_precision(x.device):
            bases = self.bases.vectors.to(x).expand(len(x), -1, -1)  # (B, K, D)
            for _ in range(self.iterations):
                shares = (self.lam * x @ bases.transpose(1, 2)).softmax(dim=2)  # A_E: (B, N, K)
                bases = _maximized(x, shares)
            return shares, bases  # pyright: ignore[reportPossiblyUnboundVariable]


def _maximized(x: Tensor, shares: Tensor) -> Tensor:
    """A_M: means of the cells (B, N, D) weighted by the shares (B, N, K), as unit vectors (B, K, D)."""
    means = (shares / (EPS + shares.sum(dim=1, keepdim=True))).transpose(1, 2) @ x
    squares = means.square().sum(dim=2, keepdim=True)
    # A basis without cells stays 0; the root of 0 has no second derivative.
    return means / (EPS + squares.masked_fill(squares == 0, 1.0).sqrt())


def _composed_rows(shares: Tensor, cells: Tensor, size: torch.Size) -> Tensor:
    """Σ_k z_qk z_nk / Σ_m z_mk of the query cells q: (B, N, K) -> (B, 1, k, H, W)."""
    total = shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    with full_precision(shares.device):
        chosen = select_points(shares[:, None], cells, size[1])  # (B, 1, k, K)
        return (chosen @ (shares / total)[:, None].transpose(2, 3)).unflatten(3, size)

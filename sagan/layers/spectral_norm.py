"""Spectral Normalization for GANs. Miyato, Kataoka, Koyama, Yoshida. arXiv:1802.05957, ICLR 2018.

Applied to a finished network. Differs from torch's parametrization: it computes in float32 under autocast, and
`hold_state` stops the power iterations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sagan.layers.normalization import HeldState
from sagan.layers.precision import full_precision


class Projection(nn.Embedding):
    """Class embeddings of a projection discriminator (arXiv:1802.05637); unlike gain tables, spectrally normalized."""


class SpectralNorm(HeldState):
    """W -> W / σ, σ = uᵀWv, W seen as (out, rest). A hook of the network runs the power iterations of all its norms."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, eps: float = 1e-12):
        super().__init__()
        self.eps = eps
        matrix = weight.detach().flatten(1)  # (out, rest)
        self.register_buffer("_u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0, eps=eps))
        self.register_buffer("_v", F.normalize(torch.randn_like(matrix[0]), dim=0, eps=eps))
        power_iterations([(self, weight)], 15)

    def sigma(self, weight: Tensor) -> Tensor:
        """Estimated largest singular value uᵀWv, differentiable in W. Copies u, v: a later forward changes them."""
        return torch.dot(self._u.clone(), weight.flatten(1) @ self._v.clone())

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight.device):
            return weight / self.sigma(weight)


@torch.no_grad()
def power_iterations(norms: Sequence[tuple[SpectralNorm, Tensor]], iterations: int = 1) -> None:
    """Power iterations u <- Wv/‖Wv‖, v <- Wᵀu/‖Wᵀu‖ of norms with their weights W, in place.

    Those of a network advance together: launching a kernel for each small vector costs more than its arithmetic.
    """
    matrices = [weight.flatten(1) for _, weight in norms]
    u, v = [norm._u for norm, _ in norms], [norm._v for norm, _ in norms]
    for _ in range(iterations):
        _normalize(u, [matrix @ x for matrix, x in zip(matrices, v, strict=True)], norms[0][0].eps)
        _normalize(v, [x @ matrix for matrix, x in zip(matrices, u, strict=True)], norms[0][0].eps)


def _normalize(out: list[Tensor], vectors: list[Tensor], eps: float) -> None:
    """out <- x/max(‖x‖, eps) for every vector x."""
    lengths = torch._foreach_clamp_min(torch._foreach_norm(vectors), eps)  # type: ignore[attr-defined]
    divisors = [length.expand_as(x) for length, x in zip(lengths, vectors, strict=True)]
    normalized = torch.cat(vectors) / torch.cat(divisors)  # a foreach division by scalars would launch one by one
    torch._foreach_copy_(out, normalized.split([len(x) for x in out]))  # type: ignore[attr-defined]


@torch._disable_dynamo  # type: ignore[attr-defined]  # torch.compiler.disable imports the compiler: a second
def _advance(network: nn.Module, inputs: object) -> None:
    """Before a forward in training: one power iteration of every norm of the network that is not held."""
    places: Any = network.normalized
    norms = [(place[0], place.original) for place in places if place[0].training and not place[0].held]
    if norms:
        with full_precision(norms[0][1].device):
            power_iterations(norms)


def spectral_normalize(network: nn.Module, eps: float = 1e-12) -> None:
    """Divide the weights of convolutions, linear layers and projections by their largest singular value, in place.

    Initialize first: zero weights would give 0/0. Gain tables, attention gains and position tables are not normalized.
    """
    places: Any = []
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | Projection):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, eps), unsafe=True)
            places.append(module.parametrizations.weight)  # type: ignore[union-attr]
    network.normalized = places
    network.register_forward_pre_hook(_advance)


def spectral_norms(network: nn.Module) -> Iterator[tuple[str, SpectralNorm, Tensor]]:
    """All spectral norms of the network: (name of the weight, its norm, the weight before normalization)."""
    for name, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm):
            yield name.replace("parametrizations.", ""), norm, module.original  # type: ignore[misc]


@torch.no_grad()
def singular_values(network: nn.Module) -> dict[str, Tensor]:
    """Estimated largest singular value of every weight before normalization; updates no buffers."""
    return {name: norm.sigma(weight) for name, norm, weight in spectral_norms(network)}


def refresh_spectral_norm(network: nn.Module, iterations: int = 20) -> None:
    """A fixed number of power iterations on the current weights, in place."""
    if norms := [(norm, weight) for _, norm, weight in spectral_norms(network)]:
        power_iterations(norms, iterations)


@torch.no_grad()
def state_without_spectral_norm(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the same network without spectral norm, with normalized weights as plain weights.

    (Removing parametrizations from a copy would break the original: torch stores them in the class that both share.)
    """
    state = network.state_dict()
    for name, norm, weight in list(spectral_norms(network)):
        prefix = name.removesuffix("weight")
        for part in ("original", "0._u", "0._v"):
            del state[f"{prefix}parametrizations.weight.{part}"]
        state[name] = weight / norm.sigma(weight)
    return state


@contextmanager
def hold_state(network: nn.Module) -> Iterator[None]:
    """Inside, no forward updates spectral-norm vectors, batch-norm statistics or attention bases."""
    modules = [m for m in network.modules() if isinstance(m, HeldState) and not m.held]
    for module in modules:
        module.held = True
    try:
        yield
    finally:
        for module in modules:
            module.held = False

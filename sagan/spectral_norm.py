"""Spectral normalization for GANs. Miyato, Kataoka, Koyama, Yoshida. arXiv:1802.05957. One pass over a finished tree.

Differs from torch's parametrisation: computed in float32 under autocast, and holds its vectors with `hold_state`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sagan.attention.functional import full_precision
from sagan.normalization import HeldState


class Projection(nn.Embedding):
    """Class embeddings used as a projection (Miyato & Koyama 2018); unlike tables of gains, normalised spectrally."""


class SpectralNorm(HeldState):
    """W -> W / σ, σ = uᵀWv, W seen as (out, rest). Reading the weight in training moves u, v by one power iteration."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, eps: float = 1e-12):
        super().__init__()
        self.eps = eps
        matrix = weight.detach().flatten(1)  # (out, rest)
        self.register_buffer("_u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0, eps=eps))
        self.register_buffer("_v", F.normalize(torch.randn_like(matrix[0]), dim=0, eps=eps))
        self.iterate(weight, 15)

    @torch.no_grad()
    def iterate(self, weight: Tensor, iterations: int = 1) -> None:
        """Power iterations u <- Wv/‖Wv‖, v <- Wᵀu/‖Wᵀu‖, in place."""
        matrix = weight.flatten(1)
        for _ in range(iterations):
            self._u.copy_(F.normalize(matrix @ self._v, dim=0, eps=self.eps))
            self._v.copy_(F.normalize(self._u @ matrix, dim=0, eps=self.eps))

    def sigma(self, weight: Tensor) -> Tensor:
        """Estimated largest singular value uᵀWv, differentiable in W. Copies of u, v: a later forward moves them."""
        return torch.dot(self._u.clone(), weight.flatten(1) @ self._v.clone())

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight.device):
            if self.training and not self.held:
                self.iterate(weight)
            return weight / self.sigma(weight)


def spectral_normalize(network: nn.Module, eps: float = 1e-12) -> None:
    """Divide every convolution, linear and projection by its largest singular value, in place.

    Initialise first: zero weights would give 0/0. Tables of gains, attention gains and position tables stay bare.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | Projection):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, eps), unsafe=True)


def spectral_norms(network: nn.Module) -> Iterator[tuple[str, SpectralNorm, Tensor]]:
    """Every spectral norm of the tree: (name of the weight, its norm, the weight before it)."""
    for name, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm):
            yield name.replace("parametrizations.", ""), norm, module.original  # type: ignore[misc]


@torch.no_grad()
def singular_values(network: nn.Module) -> dict[str, Tensor]:
    """Estimated largest singular value of every weight before normalisation; moves nothing."""
    return {name: norm.sigma(weight) for name, norm, weight in spectral_norms(network)}


def refresh_spectral_norm(network: nn.Module, iterations: int = 20) -> None:
    """A fixed number of power iterations on the weights as they stand, in place."""
    for _, norm, weight in spectral_norms(network):
        norm.iterate(weight, iterations)


@torch.no_grad()
def baked_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the same network without spectral norm: every normalised weight as a plain one.

    (Removing parametrisations from a copy would break the original: torch keeps them in the class both share.)
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
    """Inside, no forward moves spectral-norm vectors, batch-norm statistics or attention bases."""
    modules = [m for m in network.modules() if isinstance(m, HeldState) and not m.held]
    for module in modules:
        module.held = True
    try:
        yield
    finally:
        for module in modules:
            module.held = False

"""Expectation-maximization attention (arXiv:1907.13426) from its equations, without `sagan`."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def em_of_one_image(x: Tensor, mu: Tensor, iterations: int = 3, lam: float = 1.0, axis: int = 1) -> list[Tensor]:
    """x (N, D), unit vectors mu (K, D) -> last responsibilities (N, K), last μ (K, D), its scales s (K,)."""
    for _ in range(iterations):
        z = torch.einsum("nd,kd->nk", lam * x, mu).softmax(axis)
        raw = torch.einsum("nk,nd->kd", z / (1e-6 + z.sum(0)), x)
        scales = 1 / (1e-6 + raw.square().sum(1).sqrt())
        mu = scales[:, None] * raw
    return [z, mu, scales]


def unit(x: Tensor, state: Mapping[str, Tensor], start: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """The unit: y (B, C, H, W), the last z (B, N, K), μ^T (B, K, D)."""
    known = {key: options[key] for key in ("iterations", "lam", "axis") if key in options}
    images = torch.einsum("dc,bcn->bnd", state["inner.weight"][:, :, 0, 0], x.flatten(2)) + state["inner.bias"]
    images = images.detach() if options.get("gradient") == "detached" else images
    z, mu, _ = (torch.stack(found) for found in zip(*(em_of_one_image(i, start, **known) for i in images), strict=True))
    seen = torch.einsum("bnk,bkd->bnd", z, mu).clamp(min=0)
    change = torch.einsum("cd,bnd->bcn", state["out.weight"][:, :, 0, 0], seen).unflatten(2, x.shape[2:])
    if options.get("norm") == "batch":
        mean, var = change.mean((0, 2, 3), keepdim=True), change.var((0, 2, 3), keepdim=True, correction=0)
        change = (change - mean) / (var + 1e-5).sqrt() * state["norm.weight"][:, None, None]
        change = change + state["norm.bias"][:, None, None]
    if options.get("norm") == "group":  # as many groups as channels
        change = F.instance_norm(change, weight=state["norm.weight"], bias=state["norm.bias"])
    y = (x + change).relu() if options.get("relu") else x + change
    return x + state["gamma"] * (y - x) if "gamma" in state else y, z, mu

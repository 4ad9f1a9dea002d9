"""Expectation-maximization attention against the paper's equations: values, gradients, maps, bases, mistakes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import forms
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forms import assert_equations, normed, projected, randomized
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from sagan.attention import AttentionModule, make_attention
from sagan.layers.spectral_norm import spectral_normalize
from sagan.models.blocks import initialize

CHANNELS = 6
FORMS = [
    {},
    {"gain": "none", "norm": "batch", "relu": True},  # the paper's
    {"gain": "none", "norm": "batch", "relu": True, "gradient": "detached"},  # as released
    {"relu": True, "iterations": 1, "lam": 2.5},
    {"norm": "group", "ratio": 0.5, "bases": 50},  # more bases than cells
    {"gradient": "detached", "ratio": 1.5, "iterations": 5},
]


make = partial(randomized, "em_attention", CHANNELS, std=0.8)
draw = partial(forms.draw, channels=CHANNELS)


def bases_of(module: AttentionModule) -> Tensor:
    return module.get_buffer("bases.vectors")


def em_of_one_image(x: Tensor, mu: Tensor, iterations: int, lam: float) -> list[Tensor]:
    """x (N, D), unit vectors mu (K, D) -> last responsibilities (N, K), last μ (K, D)."""
    for _ in range(iterations):
        z = torch.einsum("nd,kd->nk", lam * x, mu).softmax(1)
        raw = torch.einsum("nk,nd->kd", z / (1e-6 + z.sum(0)), x)
        mu = raw / (1e-6 + raw.square().sum(1, keepdim=True).sqrt())
    return [z, mu]


def unit(
    x: Tensor, state: Mapping[str, Tensor], iterations: int = 3, lam: float = 1.0, gradient: str = "full",
    norm: str = "none", relu: bool = False, **_,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The unit: y (B, C, H, W), the last z (B, N, K), μ^T (B, K, D)."""
    images = projected(x, "inner", state).flatten(2).mT
    images = images.detach() if gradient == "detached" else images
    each = [em_of_one_image(image, state["bases.vectors"], iterations, lam) for image in images]
    z, mu = (torch.stack(found) for found in zip(*each, strict=True))
    change = projected((z @ mu).mT.clamp(min=0).unflatten(2, x.shape[2:]), "out", state)
    y = x + normed(change, "norm", state, norm, CHANNELS)
    return x + state.get("gamma", 1.0) * ((y.relu() if relu else y) - x), z, mu


def reference(x: Tensor, state: Mapping[str, Tensor], **options) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the full maps."""
    y, z, _ = unit(x, state, **options)
    composed = torch.einsum("bqk,bnk->bqn", z, z / z.sum(dim=1, keepdim=True))
    return y, {
        "attention": composed[:, None].unflatten(3, x.shape[2:]),
        "responsibility": z[:, None, :, None],
        "bases": z.mT[:, :, None].unflatten(3, x.shape[2:]),
    }


def state_of(module: AttentionModule) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | {"bases.vectors": bases_of(module).clone()}


@pytest.mark.parametrize("size", [(4, 5), (5, 3)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(size, **{"bases": 4, **options}), draw(size), reference, options, 1e-8)


@pytest.mark.parametrize("gradient", ["detached", "full"])
def test_detached_passes_the_gradient_of_the_identity_and_freezes_its_first_convolution(gradient: str):
    """Also under spectral norm and after `initialize`."""
    module, x = make((4, 5), bases=4, gradient=gradient, gain="none"), draw((4, 5))
    initialize(module, "xavier")
    spectral_normalize(module)
    weight = torch.randn_like(x)
    (module(x) * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight) == (gradient == "detached")
    frozen = {name.split(".")[0] for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == ({"inner"} if gradient == "detached" else set())
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_a_large_lam_is_spherical_k_means():
    module, x = make((4, 5), bases=4, gain="none", lam=1e6, iterations=2), draw((4, 5)).detach()
    with torch.no_grad():
        module.get_parameter("out.weight").copy_(torch.eye(CHANNELS)[:, :, None, None])
    features = module.get_submodule("inner")(x)[0].flatten(1).T  # (N, C)
    centers = bases_of(module).clone()
    for _ in range(2):
        nearest = (features @ centers.T).argmax(dim=1)
        means = [features[nearest == k].sum(0) for k in range(4)]
        centers = torch.stack([F.normalize(mean, dim=0) for mean in means])
    assert len(nearest.unique()) > 1
    maps = module.attention_rows(x, torch.tensor([[0, 0]]))["bases"][0].flatten(1)  # (K, N)
    assert torch.equal(maps.T.round(), F.one_hot(nearest, 4).double())
    torch.testing.assert_close((module(x) - x)[0].flatten(1).T, centers[nearest].relu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
def test_bases_follow_once_and_stay_unit_vectors(momentum: float):
    module, x = make((4, 5), bases=4, momentum=momentum), draw((4, 5))
    before = bases_of(module).clone()
    _, _, found = unit(x, state_of(module))
    mean = F.normalize(found.mean(dim=0), dim=1)
    expected = F.normalize(momentum * before + (1 - momentum) * mean, dim=1)
    module(x)
    torch.testing.assert_close(bases_of(module), expected, rtol=0, atol=1e-12)


def test_bases_start_as_unit_vectors():
    module = make_attention("em_attention", 64, 12)
    first = bases_of(module).clone()
    assert first.shape == (64, 64)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(64))
    initialize(module, "orthogonal")
    assert not torch.equal(bases_of(module), first)
    assert {name: p.numel() for name, p in module.named_parameters()} == {
        "gamma": 1, "inner.weight": 64 * 64, "inner.bias": 64, "out.weight": 64 * 64,
    }  # fmt: skip


def test_a_step_leaves_earlier_graphs_alone():
    """Moving the bases leaves first and second derivatives of earlier forwards intact."""
    x, y = draw((4, 5)), draw((4, 5), 3)
    module = make((4, 5), bases=4)
    state = state_of(module)
    first = module(x)
    moved = state_of(module)
    second = module(y)  # D(real), D(fake), then the backward of both
    expected = unit(x, state)[0].square().sum() + unit(y, moved)[0].square().sum()
    found = []
    for loss in (first.square().sum() + second.square().sum(), expected):
        slopes = torch.autograd.grad(loss, (x, y), create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), list(module.parameters())))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


def test_an_empty_basis_has_finite_derivatives():
    module, x = make((3, 3), bases=30, lam=1e4), draw((3, 3))
    module(x)
    kept = bases_of(module)
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(30, dtype=torch.float64))
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    gradients = torch.autograd.grad(slope.square().sum(), [x, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_autocast_leaves_float32_state():
    """EM runs in float32 under autocast, and so do the bases."""
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module = make(8, bases=4, dtype=torch.float32)
        rows = module.attention_rows(x, torch.tensor([[1, 2]]))
        module(x)
    assert {row.dtype for row in rows.values()} == {torch.float32}
    torch.testing.assert_close(rows["attention"].sum(), torch.tensor(2.0), rtol=0, atol=1e-5)
    assert bases_of(module).dtype == torch.float32
    torch.testing.assert_close(bases_of(module).norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def follow_in_two(rank: int, folder: Path) -> None:
    """One of two processes: its half of the batch, one forward in training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = make((3, 4), bases=4)
    images = torch.load(folder / "images.pt", weights_only=True)
    module(images[2 * rank : 2 * rank + 2])
    torch.save(bases_of(module), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_the_same_bases(tmp_path: Path):
    torch.manual_seed(1)
    images = torch.randn(4, CHANNELS, 3, 4, dtype=torch.float64)
    torch.save(images, tmp_path / "images.pt")
    spawn(follow_in_two, (tmp_path,), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*both)
    module = make((3, 4), bases=4)
    module(images)
    torch.testing.assert_close(both[0], bases_of(module), rtol=0, atol=1e-12)

"""EM attention against the paper's equations (em_reference.py): values, gradients, maps, memory, mistakes."""

import pytest
import torch
import torch.nn.functional as F
from em_reference import em_of_one_image, unit
from forms import assert_same_with_gradients
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention
from sagan.layers.spectral_norm import spectral_normalize
from sagan.models.blocks import initialize

CHANNELS = 6
FORMS = [
    pytest.param({}, id="default"),
    pytest.param({"gain": "none", "norm": "batch", "relu": True}, id="paper"),
    pytest.param({"gain": "none", "norm": "batch", "relu": True, "gradient": "detached"}, id="released"),
    pytest.param({"relu": True, "iterations": 1, "lam": 2.5}, id="relu-one-step"),
    pytest.param({"norm": "group", "ratio": 0.5, "bases": 50}, id="more-bases-than-cells"),
    pytest.param({"gradient": "detached", "ratio": 1.5, "iterations": 5}, id="detached-wide"),
]
SIZES = [(4, 4), (5, 3), (2, 7)]


def make(size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0, few bases."""
    torch.manual_seed(0)
    module = make_attention("em_attention", CHANNELS, size, **{"bases": 4, **options}).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.8)
    for gain in module.gains().values():
        nn.init.constant_(gain, 0.7)
    return module


def draw(*size: int) -> Tensor:
    return torch.randn(2, CHANNELS, *size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations."""
    module, x = make(size, **options), draw(*size)
    bases = module.get_buffer("bases.vectors").clone()
    expected, *_ = unit(x, dict(module.named_parameters()), bases, **options)
    found = module(x)
    over_cells, *_ = unit(x, dict(module.named_parameters()), bases, axis=0, **options)
    assert (found - over_cells).abs().max() > 1e-2  # the softmax over cells is another mechanism
    assert_same_with_gradients(found, expected, [x, *(p for p in module.parameters() if p.requires_grad)], 1e-8)


def test_detached_passes_the_gradient_of_the_identity_and_freezes_its_first_convolution():
    """Also under spectral norm and after `initialize`."""
    for gradient in ("detached", "full"):
        module, x = make(gradient=gradient, gain="none"), draw(4, 5)
        initialize(module, "xavier")
        spectral_normalize(module)
        weight = torch.randn_like(x)
        (module(x) * weight).sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, weight) == (gradient == "detached")
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        first = {name for name, _ in module.named_parameters() if name.startswith("inner.")}
        assert frozen == (first if gradient == "detached" else set())
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_a_large_lam_is_spherical_k_means():
    """For λ → ∞ the steps are those of spherical k-means."""
    module, x = make(gain="none", lam=1e6, iterations=2), draw(4, 5).detach()
    with torch.no_grad():
        module.get_parameter("out.weight").copy_(torch.eye(CHANNELS)[:, :, None, None])
    features = module.get_submodule("inner")(x)[0].flatten(1).T  # (N, C)
    centers = module.get_buffer("bases.vectors").clone()
    for _ in range(2):
        nearest = (features @ centers.T).argmax(dim=1)
        means = [features[nearest == k].sum(0) for k in range(4)]
        centers = torch.stack([F.normalize(mean, dim=0) for mean in means])
    assert len(nearest.unique()) > 1
    maps = module.attention_rows(x, torch.tensor([[0, 0]]))["bases"][0].flatten(1)  # (K, N)
    assert torch.equal(maps.T.round(), F.one_hot(nearest, 4).double())
    torch.testing.assert_close((module(x) - x)[0].flatten(1).T, centers[nearest].relu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"bases": 40, "lam": 3.0}, {"gradient": "detached"}])
def test_attention_rows_equal_the_full_map(options: dict, size: tuple[int, int]):
    """Rows, responsibilities and bases equal the equations and reproduce x̃ of a cell."""
    module, x = make(size, **options).eval(), draw(*size)
    bases = module.get_buffer("bases.vectors").clone()
    _, z, found = unit(x, dict(module.named_parameters()), bases, **options)
    points = torch.tensor([[0, 0], [size[0] - 1, 1], [1, size[1] - 1]])
    rows, cells = module.attention_rows(x, points), points[:, 0] * size[1] + points[:, 1]
    shares = z / z.sum(dim=1, keepdim=True)
    close = {"rtol": 0, "atol": 1e-10}
    full = torch.einsum("bqk,bnk->bqn", z, shares).unflatten(2, size)
    torch.testing.assert_close(rows["attention"][:, 0], full[:, cells], **close)
    torch.testing.assert_close(rows["responsibility"][:, 0, :, 0], z[:, cells], **close)
    torch.testing.assert_close(rows["bases"][:, :, 0], z.transpose(1, 2).unflatten(2, size), **close)
    image = module.get_submodule("inner")(x)[0].flatten(1).T  # (N, D)
    *_, scales = em_of_one_image(image, bases, lam=options.get("lam", 1.0))
    kept = scales * (mass := z[0].sum(dim=0)) / (1e-6 + mass)
    from_taps = rows["responsibility"][0, 0, :, 0] * kept @ (rows["bases"][0, :, 0].flatten(1) / mass[:, None])
    torch.testing.assert_close(from_taps @ image, z[0, cells] @ found[0], **close)

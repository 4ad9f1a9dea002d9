"""Non-local blocks against the paper's equations, one pair of cells at a time."""

import math
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from forms import assert_equations, assert_same_with_gradients, draw, normed, projected, randomized
from torch import Tensor

from sagan.attention import make_attention
from sagan.attention.non_local import FORMS, mean_by_hinges

CHANNELS = 6
make = partial(randomized, "non_local", CHANNELS, std=0.5)


def halved(x: Tensor) -> Tensor:
    """The largest of every 2×2 cells; a last odd row or column is left out."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    return torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(dim=0)


def weight_of_pair(form: str, state: Mapping[str, Tensor], query: Tensor, key: Tensor, scale: bool) -> Tensor:
    """f(x_i, x_j) of eqs. 2-5 before the exponential, for one query (C',) and one key (C',)."""
    if form == "concatenation":
        return torch.relu((state["pair.weight"].flatten() * torch.cat([query, key])).sum())
    return (query * key).sum() / (math.sqrt(len(query)) if scale else 1)


def reference(
    x: Tensor, state: Mapping[str, Tensor], form: str, pool: str = "none", scale: bool = False, norm: str = "none", **_
) -> tuple[Tensor, dict[str, Tensor]]:
    """z of eq. 6, and the weights f/C(x) (B, 1, N, H', W')."""
    source = halved(x) if pool == "before" else x
    query, key = (x, source) if form == "gaussian" else (projected(x, "query", state), projected(source, "key", state))
    value = projected(source, "value", state)
    if pool == "after":
        key, value = halved(key), halved(value)
    size = key.shape[2:]
    query, key, value = (part.flatten(2) for part in (query, key, value))
    rows = []
    for b in range(x.shape[0]):
        for i in range(query.shape[2]):
            pairs = [weight_of_pair(form, state, query[b, :, i], key[b, :, j], scale) for j in range(key.shape[2])]
            f = torch.stack(pairs)
            rows.append(f.exp() / f.exp().sum() if "gaussian" in form else f / len(f))
    weights = torch.stack(rows).unflatten(0, (x.shape[0], -1))  # (B, N, M)
    y = torch.einsum("bij,bcj->bci", weights, value).unflatten(2, x.shape[2:])
    change = normed(projected(y, "out", state), "norm", state, norm, 1)
    return x + state.get("gamma", 1) * change, {"attention": weights[:, None].unflatten(3, size)}


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {"pool": pool}) for form in FORMS for pool in ("none", "before", "after")),
        ("embedded_gaussian", {"scale": True}),
        ("gaussian", {"scale": True}),
        ("concatenation", {"bias": False}),
        ("dot_product", {"gain": "none", "bias": False}),
        ("embedded_gaussian", {"gain": "none", "ratio": 1.0}),
        ("concatenation", {"ratio": 0.01}),
        ("dot_product", {"norm": "batch"}),
    ],
)
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_equals_the_equations(form: str, options: dict, size: tuple[int, int]):
    module = make(size, form=form, **options)
    assert_equations(module, draw(size, channels=CHANNELS), partial(reference, form=form), options)
    assert module.get_parameter("value.weight").shape[0] == max(1, int(CHANNELS * options.get("ratio", 0.5)))


def test_batch_norm_starts_at_gain_0_in_the_form_without_gamma():
    module, x = make_attention("non_local", CHANNELS, 4, norm="batch", gain="none"), torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("keys", [1, 9])
def test_hinges_where_all_or_no_keys_count(keys: int):
    """The sorted sum is exact when all, one or no keys count; second derivatives included."""
    query = torch.tensor([[[-50.0, 50.0, 0.3, -0.2]]], dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 1, keys, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 2, keys, dtype=torch.float64, requires_grad=True)
    by_pairs = value @ torch.relu(query.transpose(1, 2) + key).transpose(1, 2) / keys
    assert_same_with_gradients(mean_by_hinges(query, key, value), by_pairs, [query, key, value])
    assert torch.autograd.gradgradcheck(mean_by_hinges, (query, key, value))


@pytest.mark.parametrize("offset", [0.0, 10000.0])
def test_hinges_keep_their_precision(offset: float):
    """Prefix sums over 4096 keys keep 1e-4 in float32, also far from 0."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 4096, generator=generator) + shift for shift in (offset, -offset))
    value = torch.randn(1, 8, 4096, generator=generator)
    exact = [part.double().requires_grad_() for part in (query, key, value)]
    rounded = [part.requires_grad_() for part in (query, key, value)]
    found, expected = mean_by_hinges(*rounded), mean_by_hinges(*exact)
    weight = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad((found * weight).sum(), rounded)
    of_exact = torch.autograd.grad((expected * weight.double()).sum(), exact)
    for single, double in zip([found, *gradients], [expected, *of_exact], strict=True):
        assert (single - double).abs().max() < 1e-4 * double.abs().max()

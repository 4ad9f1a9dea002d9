"""Non-local blocks against the paper's equations, one pair of cells at a time."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_maps, assert_same_with_gradients, draw, projected, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention
from sagan.attention.non_local import FORMS, mean_by_hinges

CHANNELS, INNER = 6, 3


def make(form: str, size: tuple[int, int] = (4, 4), **options) -> AttentionModule:
    return randomized("non_local", CHANNELS, size, 0.5, form=form, **options)


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
    form: str, state: Mapping[str, Tensor], x: Tensor, pool: str = "none", scale: bool = False, keys: int | None = None,
    **_,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """z of eq. 6 without norm, and the weights f/C(x) (B, 1, N, H', W'). `keys`: assumed number of keys."""
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
            rows.append(f.exp() / f.exp().sum() if "gaussian" in form else f / (keys or len(f)))
    weights = torch.stack(rows).unflatten(0, (x.shape[0], -1))  # (B, N, M)
    y = torch.einsum("bij,bcj->bci", weights, value).unflatten(2, x.shape[2:])
    return x + state.get("gamma", 1) * projected(y, "out", state), weights[:, None].unflatten(3, size)


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
    ],
)
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_equals_the_equations(form: str, options: dict, size: tuple[int, int]):
    module, x = make(form, size, **options), draw(size, channels=CHANNELS)
    expected, rows = reference(form, dict(module.named_parameters()), x, **options)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])
    assert_maps(module, x, {"attention": rows})
    assert module.get_parameter("value.weight").shape[0] == max(1, int(CHANNELS * options.get("ratio", 0.5)))


def test_batch_norm_follows_the_last_projection():
    """It starts at gain 0 in the form without gamma."""
    module, x = (
        make_attention("non_local", CHANNELS, 4, norm="batch", gain="none").double(),
        draw((4, 4), 2, channels=6),
    )
    assert torch.equal(module(x), x)
    module = make("dot_product", norm="batch")
    state = dict(module.named_parameters())
    before, _ = reference("dot_product", state | {"gamma": torch.ones(())}, x)
    change = F.batch_norm(before - x, None, None, state["norm.weight"], state["norm.bias"], training=True)
    inputs = [parameter for name, parameter in state.items() if name != "out.bias"]  # the mean takes its gradient away
    assert_same_with_gradients(module(x), x + state["gamma"] * change, [x, *inputs])


def test_differs_from_known_mistakes():
    def differs(other: Tensor) -> bool:
        return bool((module(x) - other).abs().max() > 1e-3)

    module, x = make("embedded_gaussian", pool="before"), draw((4, 4), channels=CHANNELS)
    assert differs(reference("embedded_gaussian", dict(module.named_parameters()), x, "after")[0])
    module = make("embedded_gaussian", scale=True)
    wider = {name: p * (INNER / CHANNELS) ** 0.25 if name[:3] in ("que", "key") else p
             for name, p in module.named_parameters()}  # fmt: skip
    assert differs(reference("embedded_gaussian", wider, x, scale=True)[0])  # scaled by C^-1/2, not C'^-1/2
    for form in ("dot_product", "concatenation"):
        module = make(form, pool="after")
        state = dict(module.named_parameters())
        assert differs(reference(form, state, x, "after", keys=16)[0])  # N is the number of keys: 4
    swapped = {**state, "pair.weight": state["pair.weight"].roll(INNER, dims=1)}
    assert differs(reference("concatenation", swapped, x, "after")[0])  # [φ, θ]


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

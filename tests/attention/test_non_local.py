"""Non-local blocks against the paper's equations, one pair of cells at a time."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention
from sagan.attention.non_local import mean_by_hinges

CHANNELS, INNER = 6, 3
FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SIZES = [(4, 4), (5, 3)]
POINTS = torch.tensor([[0, 0], [3, 0], [1, 2]])


def make(form: str, size: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("non_local", options.pop("channels", CHANNELS), size, 0.5, dtype, form=form, **options)


def draw(size: tuple[int, int] = (4, 4)) -> Tensor:
    return torch.randn(2, CHANNELS, *size, dtype=torch.float64, requires_grad=True)


def projected(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A 1×1 convolution as a product."""
    found = torch.einsum("oc,bchw->bohw", state[f"{name}.weight"][:, :, 0, 0], x)
    return found + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else found


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
    form: str, state: Mapping[str, Tensor], x: Tensor, pool: str = "none", scale: bool = False, keys: int | None = None
) -> tuple[Tensor, Tensor]:
    """z of eq. 6 without norm, and the weights f/C(x) (B, N, M). `keys`: what M is taken for, if not their number."""
    source = halved(x) if pool == "before" else x
    query, key = (x, source) if form == "gaussian" else (projected(state, "query", x), projected(state, "key", source))
    value = projected(state, "value", source)
    if pool == "after":
        key, value = halved(key), halved(value)
    query, key, value = (part.flatten(2) for part in (query, key, value))
    rows = []
    for b in range(x.shape[0]):
        for i in range(query.shape[2]):
            pairs = [weight_of_pair(form, state, query[b, :, i], key[b, :, j], scale) for j in range(key.shape[2])]
            f = torch.stack(pairs)
            rows.append(f.exp() / f.exp().sum() if "gaussian" in form else f / (keys or len(f)))
    weights = torch.stack(rows).unflatten(0, (x.shape[0], -1))  # (B, N, M)
    y = torch.einsum("bij,bcj->bci", weights, value).unflatten(2, x.shape[2:])
    return x + state.get("gamma", 1) * projected(state, "out", y), weights


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", ["none", "before", "after"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_equations(form: str, pool: str, size: tuple[int, int]):
    """Values and gradients equal the equations for every form and pooling."""
    module, x = make(form, size, pool=pool), draw(size)
    expected, _ = reference(form, dict(module.named_parameters()), x, pool)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("embedded_gaussian", {"scale": True}),
        ("gaussian", {"scale": True}),
        ("concatenation", {"bias": False}),
        ("dot_product", {"gain": "none", "bias": False}),
        ("embedded_gaussian", {"gain": "none", "ratio": 1.0}),
        ("concatenation", {"ratio": 0.01}),
    ],
)
def test_options_equal_the_equations(form: str, options: dict):
    """Scale, inner width, bias and the form without gain equal the equations."""
    module, x = make(form, **options), draw()
    expected, weights = reference(form, dict(module.named_parameters()), x, scale=options.get("scale", False))
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])
    rows = module.attention_rows(x, POINTS)["attention"][:, 0].flatten(2)
    torch.testing.assert_close(rows, weights[:, POINTS[:, 0] * 4 + POINTS[:, 1]], rtol=0, atol=1e-10)
    assert module.get_parameter("value.weight").shape[0] == max(1, int(CHANNELS * options.get("ratio", 0.5)))


def test_batch_norm_stands_after_the_last_projection():
    """Batch norm follows W_z and starts at gain 0 in the form without gamma."""
    module, x = make_attention("non_local", CHANNELS, 4, norm="batch", gain="none").double(), draw()
    assert torch.equal(module(x), x)
    module = make("dot_product", norm="batch")
    state = dict(module.named_parameters())
    before, _ = reference("dot_product", state | {"gamma": torch.ones(())}, x)
    change = F.batch_norm(before - x, None, None, state["norm.weight"], state["norm.bias"], training=True)
    inputs = [parameter for name, parameter in state.items() if name != "out.bias"]  # the mean takes its gradient away
    assert_same_with_gradients(module(x), x + state["gamma"] * change, [x, *inputs])


@pytest.mark.parametrize("pool", ["none", "before", "after"])
@pytest.mark.parametrize("form", FORMS)
def test_attention_rows_equal_the_full_map(form: str, pool: str):
    """Rows are the weights of the values, and of the documented kind."""
    module, x = make(form, (5, 3), pool=pool), draw((5, 3))
    rows = module.attention_rows(x, POINTS)["attention"]
    _, weights = reference(form, dict(module.named_parameters()), x, pool)
    assert rows.shape[3:] == ((5, 3) if pool == "none" else (2, 1))
    torch.testing.assert_close(rows[:, 0].flatten(2), weights[:, POINTS[:, 0] * 3 + POINTS[:, 1]], rtol=0, atol=1e-10)
    kinds = {"dot_product": "signed weight", "concatenation": "unnormalised weight"}
    assert module.map_kinds == {"attention": kinds.get(form, "softmax row")}


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


def test_known_wrong_forms_are_other_functions():
    """The module differs from wrong re-implementations."""
    module, x = make("embedded_gaussian", (4, 4), pool="before"), draw()
    state = dict(module.named_parameters())
    assert differ(module(x), reference("embedded_gaussian", state, x, "after")[0])  # pooled after the projections
    module = make("embedded_gaussian", scale=True)
    wider = {name: p * (INNER / CHANNELS) ** 0.25 if name[:3] in ("que", "key") else p for name, p in
             module.named_parameters()}  # fmt: skip
    assert differ(module(x), reference("embedded_gaussian", wider, x, scale=True)[0])  # scaled by C^-1/2, not C'^-1/2
    for form in ("dot_product", "concatenation"):
        module = make(form, pool="after")
        state = dict(module.named_parameters())
        assert differ(module(x), reference(form, state, x, "after", keys=16)[0])  # N is the number of keys: 4
    swapped = {**state, "pair.weight": state["pair.weight"].roll(INNER, dims=1)}
    assert differ(module(x), reference("concatenation", swapped, x, "after")[0])  # [φ, θ]


@pytest.mark.parametrize("keys", [1, 9])
def test_hinges_where_all_or_no_keys_count(keys: int):
    """The sorted sum is exact when all, one or no keys count; second derivatives included."""
    query = torch.tensor([[[-50.0, 50.0, 0.3, -0.2]]], dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 1, keys, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 2, keys, dtype=torch.float64, requires_grad=True)
    hinges = torch.relu(query.transpose(1, 2) + key)  # (1, 4, M)
    assert_same_with_gradients(
        mean_by_hinges(query, key, value), value @ hinges.transpose(1, 2) / keys, [query, key, value]
    )
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
    by_pairs = exact[2] @ torch.relu(exact[0].transpose(1, 2) + exact[1]).transpose(1, 2) / 4096
    torch.testing.assert_close(expected, by_pairs, rtol=0, atol=1e-9)
    for single, double in zip([found, *gradients], [expected, *of_exact], strict=True):
        assert (single - double).abs().max() < 1e-4 * double.abs().max()

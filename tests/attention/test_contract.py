"""What every mechanism of the table must compute. A new one enters by its line in ATTENTION (forms: forms.py)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from forms import CHANNELS, Sizes, draw, each_form, make
from meta_device import META, device
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.attention import KINDS, attention_options, make_attention, record_attention
from sagan.layers.spectral_norm import hold_state, power_iterations, spectral_normalize, spectral_norms
from sagan.models.blocks import initialize

# Without a table of positions, a convolution of neighbors or pooled keys, a mechanism cannot know where a cell lies.
KNOW_PLACES = {
    "augmented_conv", "gated_positional", "transformer", "selective_kernel", "cbam", "spatial_transformer",
    "residual_block",
}  # fmt: skip


@each_form
@pytest.mark.parametrize(("size", "batch"), [((6, 8), 3), ((7, 5), 1), ((12, 12), 3)])
def test_shapes_are_kept(name: str, options: dict, size: tuple[int, int], batch: int):
    found = make(name, options, size)(draw(size, batch))
    assert found.shape == (batch, CHANNELS, *size)
    assert found.isfinite().all()


@each_form
def test_is_the_identity_at_first(name: str, options: dict):
    module, x = make_attention(name, CHANNELS, (6, 8), **options), draw(dtype=torch.float32)
    initialize(module, "orthogonal")
    torch.testing.assert_close(module(x), x, rtol=0, atol=1e-5)


@each_form
def test_without_gain_it_changes_its_input(name: str, options: dict):
    """`gain: none` is active at once and has no gamma."""
    if "gain" not in attention_options(name):
        pytest.skip("the paper's form has its own gain")
    module, x = make_attention(name, CHANNELS, (6, 8), **options, gain="none"), draw(dtype=torch.float32)
    assert module.gains() == {}
    assert not torch.allclose(module(x), x, atol=1e-3)


@each_form
def test_every_parameter_gets_a_gradient(name: str, options: dict):
    module = make(name, options)
    module(draw()).square().sum().backward()
    without = [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert not frozen or options.get("gradient") == "detached"


@each_form
def test_permutation_of_cells(name: str, options: dict):
    module, x = make(name, options, (6, 6)).eval(), draw((6, 6))
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    permuted = x.flatten(2)[:, :, order].unflatten(2, (6, 6))
    after = module(x).flatten(2)[:, :, order].unflatten(2, (6, 6))
    given = attention_options(name) | options
    pooled = given.get("pool", False) not in (False, "none")
    knows = (name in KNOW_PLACES and given.get("position") != "none") or pooled
    assert torch.allclose(module(permuted), after, atol=1e-8) != knows


@each_form
def test_spectral_norm_gives_sigma_one(name: str, options: dict):
    """Weights are read once per forward."""
    module = make_attention(name, CHANNELS, (6, 8), **options)
    initialize(module, "xavier")
    spectral_normalize(module)
    normalized = list(spectral_norms(module))
    before = {n: norm._u.clone() for n, norm, _ in normalized}
    module(draw(dtype=torch.float32))
    for weight_name, norm, weight in normalized:
        once = copy.deepcopy(norm)
        once._u.copy_(before[weight_name])
        once._v.copy_(F.normalize(before[weight_name] @ weight.flatten(1), dim=0))
        power_iterations([(once, weight)])
        torch.testing.assert_close(norm._u, once._u, rtol=1e-3, atol=1e-4)
        power_iterations([(norm, weight)], 100)
        largest = torch.linalg.svdvals((weight / norm.sigma(weight)).flatten(1))[0]
        torch.testing.assert_close(largest, torch.tensor(1.0), rtol=2e-2, atol=0)


@each_form
def test_copies_state_dicts_and_single_images(name: str, options: dict):
    """A copy and a state dict give the same output; an image does not depend on its batch."""
    module, x = make(name, options).eval(), draw()
    expected = module(x)
    other = make_attention(name, CHANNELS, (6, 8), **options).double().eval()
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), other):
        assert torch.equal(twin(x), expected)
    torch.testing.assert_close(module(x[1:]), expected[1:], rtol=0, atol=1e-10)


@each_form
def test_second_derivatives(name: str, options: dict):
    module, x = make(name, options).eval(), draw()
    direction = torch.randn_like(x)

    def slope(at: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(module(at).sin().sum(), at, create_graph=True)
        return (gradient * direction).sum()

    with sdpa_kernel(SDPBackend.MATH):
        penalty = slope(x)
        gradients = torch.autograd.grad(penalty, [p for p in module.parameters() if p.requires_grad], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)
        (found,) = torch.autograd.grad(slope(x), x)
        step, along = 1e-5, F.normalize(torch.randn_like(x).flatten(), dim=0).view_as(x)
        ahead, behind = (slope((x + sign * step * along).detach().requires_grad_()) for sign in (1, -1))
    by_difference = (ahead - behind) / (2 * step)
    if options.get("gradient") == "detached":
        return  # by design not the derivative of what it computes
    torch.testing.assert_close((found * along).sum(), by_difference, rtol=1e-3, atol=1e-4)


@each_form
def test_autocast_keeps_the_values(name: str, options: dict):
    module, x = make(name, options, dtype=torch.float32).eval(), draw(dtype=torch.float32)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), record_attention(module) as maps:
        found = module(x)
    assert F.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.995
    for recorded in maps.values():
        if dims := KINDS[recorded.kind].sums_to_one:
            total = recorded.weights.float().sum(dims)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=5e-3)


@each_form
def test_held_state_stands_still(name: str, options: dict):
    module, x = make(name, options).train(), draw()
    buffers = {n: b.clone() for n, b in module.named_buffers()}
    with hold_state(module):
        module(x)
    module.eval()(x)
    assert all(torch.equal(b, buffers[n]) for n, b in module.named_buffers())
    module.train()(x)
    if any("running" in n or "bases" in n for n in buffers):
        assert any(not torch.equal(b, buffers[n]) for n, b in module.named_buffers())


@each_form
def test_small_networks_and_other_sizes_than_the_built_one(name: str, options: dict):
    x = torch.randn(2, 16, *((8, 8) if name == "augmented_conv" else (5, 9)))  # its relative tables fix the size
    assert make_attention(name, 16, 8, **options)(x).shape == x.shape


@pytest.mark.slow
@each_form
def test_compiled_equals_eager(name: str, options: dict):
    """torch.compile takes the whole module and gives the same values and gradients."""
    torch.compiler.reset()
    eager = make(name, options, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    results = []
    for module in (eager, compiled):
        x = draw(dtype=torch.float32)
        y = module(x)
        y.square().sum().backward()
        results.append([y, x.grad, *module.state_dict().values()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * max(1.0, b.detach().abs().max().item()))


@each_form
def test_pairs_are_what_an_unfused_kernel_holds(name: str, options: dict):
    """`pairs` counts the weights that the math kernel stores."""
    module, x = make_attention(name, CHANNELS, (24, 24), **options).eval(), draw((24, 24), 1, torch.float32).detach()
    with Sizes() as seen, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(x)
    pairs = module.pairs(24, 24)
    assert pairs in seen.seen if pairs else max(seen.seen) < 24**4 // 2


@each_form
def test_it_stays_on_the_device(name: str, options: dict) -> None:
    """Forward and double backward use no tensor of the host and read no value."""
    module = make_attention(name, CHANNELS, (8, 8), **options).to(META)
    x = torch.empty(2, CHANNELS, 8, 8, device=META, requires_grad=True)
    with device():
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad is not None

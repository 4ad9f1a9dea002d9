"""The spatial transformer against the paper's equations: one hat for every cell, the map extended beyond its edges."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, randomized
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention

FORMS = [
    {},
    {"padding": "border"},
    {"padding": "zeros"},
    {"transform": "similarity"},
    {"transform": "zoom", "width": 5},
    {"gain": "none", "padding": "zeros"},
]


def make(size: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters and gamma not 0, which reads cells up to about a map's size away."""
    module = randomized("spatial_transformer", 6, size, 0.15, dtype, **options)
    nn.init.normal_(module.theta.bias, std=0.6)
    return module


def theta_of(x: Tensor, state: Mapping[str, Tensor], transform: str) -> Tensor:
    """loc (B, 2, 3), and the gain, of a module built for maps of the size of x."""
    h = x
    for layer in ("conv1", "conv2"):
        h = F.conv2d(h, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=1)
        h = F.pad(h, (0, h.shape[3] % 2, 0, h.shape[2] % 2), value=-torch.inf)
        h = h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax(dim=(3, 5)).clamp(min=0)
    rows, columns = (min(4, -(-side // 4)) for side in x.shape[2:])
    bins = [
        h[:, :, i * h.shape[2] // rows : -(-(i + 1) * h.shape[2] // rows)][
            :, :, :, j * h.shape[3] // columns : -(-(j + 1) * h.shape[3] // columns)
        ].mean(dim=(2, 3))
        for i in range(rows)
        for j in range(columns)
    ]
    h = (torch.stack(bins, dim=2).flatten(1) @ state["hidden.weight"].T + state["hidden.bias"]).clamp(min=0)
    p = (h @ state["theta.weight"].T + state["theta.bias"]) * state.get("gamma", torch.tensor(1.0))
    n = [*p.unbind(1), torch.zeros_like(p[:, 0])]
    entries = {
        "affine": n[:6],
        "similarity": [n[0], -n[1], n[2], n[1], n[0], n[3]],
        "zoom": [n[0], n[-1], n[1], n[-1], n[0], n[2]],
    }[transform]
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=p.dtype)
    return identity + torch.stack(entries, dim=1).unflatten(1, (2, 3))


def source(index: int, size: int, padding: str) -> int | None:
    """Which cell stands at an index beyond the edge: the mirrored one (… 1 0 | 0 1 … | …), the last one, or none."""
    if padding == "reflection":
        index = index % (2 * size)
        return min(index, 2 * size - 1 - index)
    return min(max(index, 0), size - 1) if padding == "border" else index if 0 <= index < size else None


def hats(position: Tensor, size: int, padding: str) -> Tensor:
    """max(0, 1 - |position - m|) of every m of the extended axis, added up by cell: (B, …, size)."""
    weights = [torch.zeros_like(position) for _ in range(size)]
    for m in range(-8 * size, 9 * size):
        if (cell := source(m, size, padding)) is not None:
            weights[cell] = weights[cell] + (1 - (position - m).abs()).clamp(min=0)
    return torch.stack(weights, dim=-1)


def footprints(theta: Tensor, size: torch.Size, padding: str) -> tuple[Tensor, Tensor]:
    """Eqs. 1 and 5: weights (B, H, W, H, W) of the input cells for every output cell, and positions (B, 2, H, W)."""
    height, width = size
    target = torch.tensor(
        [[((c + 0.5) / width * 2 - 1, (r + 0.5) / height * 2 - 1, 1) for c in range(width)] for r in range(height)],
        dtype=theta.dtype,
    )
    x, y = torch.einsum("brk,hwk->rbhw", theta, target)
    rows, columns = (y + 1) * height / 2 - 0.5, (x + 1) * width / 2 - 0.5
    weights = torch.einsum("bhwr,bhwc->bhwrc", hats(rows, height, padding), hats(columns, width, padding))
    return weights, torch.stack([rows, columns], dim=1)


def reference(
    x: Tensor, state: Mapping[str, Tensor], transform: str = "affine", padding: str = "reflection", **_
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sampled map; the footprints and the grid."""
    weights, positions = footprints(theta_of(x, state, transform), x.shape[2:], padding)
    assert positions.min() < -0.5  # the padding is tested
    maps = {"footprint": weights[:, None].flatten(2, 3), "grid": positions[:, :, None]}
    return torch.einsum("bhwrc,bdrc->bdhw", weights, x), maps


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 9)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module, x = make(size, **options), torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    assert_equations(module, x, reference, options, 1e-8)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (12, 33), (1, 1), (3, 100)])
@pytest.mark.parametrize("padding", ["reflection", "border", "zeros"])
def test_is_the_identity_to_the_bit_at_first(padding: str, size: tuple[int, int]):
    x = torch.randn(2, 16, *size)
    assert torch.equal(make_attention("spatial_transformer", 16, 8, padding=padding)(x), x)


def test_without_a_gain_it_starts_near_the_identity():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)
    module = make_attention("spatial_transformer", 16, 8, gain="none")
    _, column = module.attention_rows(x, torch.tensor([[0, 0]]))["grid"][0, :, 0]
    assert 0 < (column - torch.arange(8)).abs().max() < 0.1
    assert module.theta.weight.any()


@pytest.mark.parametrize("padding", ["reflection", "zeros"])
def test_a_warp_that_leaves_the_map_can_come_back(padding: str):
    """Reflection padding gives a gradient outside the map; zeros do not."""
    module, x = make(padding=padding), torch.randn(2, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(module.theta.weight, std=1e-3)
    with torch.no_grad():
        module.theta.bias.copy_(torch.tensor([0.0, 0, 6, 0, 0, 6]))  # three maps away
    gradients = torch.autograd.grad(module(x).sin().sum(), [x, module.theta.bias])
    assert all(bool(gradient.any()) == (padding == "reflection") for gradient in gradients)


def test_the_warp_keeps_float32_coordinates_under_autocast():
    module, x = make((8, 8), torch.float32), torch.randn(2, 6, 8, 8)
    expected = module.attention_rows(x, torch.tensor([[0, 0]]))["grid"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.attention_rows(x, torch.tensor([[0, 0]]))["grid"]
        assert module(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_coordinates_that_are_not_finite_raise_no_index_error():
    module, x = make(dtype=torch.float32), torch.randn(1, 6, 8, 8)
    for value in (float("nan"), float("inf"), 1e30):
        nn.init.constant_(module.theta.bias, value)
        assert module(x).shape == x.shape

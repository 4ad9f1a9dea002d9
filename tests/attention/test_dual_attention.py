"""Dual attention against the paper's equations, one cell and one channel at a time."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_equations, draw, projected, randomized
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention, record_attention

CHANNELS = 8
FORMS = [
    {},
    {"form": "position", "bias": False, "ratio": 0.5},
    {"form": "channel"},
    {"form": "channel", "sign": -1, "normalize": True},
    {"sign": -1, "ratio": 2.0},
    {"normalize": True},
]


def make(size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    module = randomized("dual_attention", CHANNELS, size, 0.5, dtype, **options)
    for gain, value in zip(module.gains().values(), (0.7, -0.4), strict=False):
        nn.init.constant_(gain, value)
    return module


def small(*size: int) -> Tensor:
    """Features so small that the channels' softmax is not one-hot."""
    return (0.3 * draw(size, channels=CHANNELS)).detach().requires_grad_()


def softmax_rows(query: Tensor, key: Tensor) -> Tensor:
    """Row j over i of the products of columns, (B, d, N) and (B, d, M) -> (B, N, M)."""
    keys, queries = range(key.shape[2]), range(query.shape[2])
    return torch.stack(
        [torch.stack([(query[..., j] * key[..., i]).sum(1) for i in keys], 1).softmax(1) for j in queries], dim=1
    )


def position_rows(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """s_ji of eq. 1: (B, N, N)."""
    return softmax_rows(*(projected(x, name, state).flatten(2) for name in ("query", "key")))


def channel_rows(x: Tensor, sign: int = 1, normalize: bool = False) -> Tensor:
    """x_ji of eq. 3: (B, C, C)."""
    a = x.flatten(2).mT
    return softmax_rows(a * sign / (a.shape[1] if normalize else 1), a)


def dual(
    x: Tensor, state: Mapping[str, Tensor], form: str = "both", sign: int = 1, normalize: bool = False, **_
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eqs. 2 and 4, both added to x, and the full maps."""
    y, maps = x.flatten(2), {}
    if form != "channel":
        s, d = position_rows(x, state), projected(x, "value", state).flatten(2)
        e = torch.stack([(s[:, j, None] * d).sum(dim=2) for j in range(s.shape[1])], dim=2)  # Σ_i s_ji D_i
        y = y + state["gamma_position"] * e
        maps["position"] = s[:, None].unflatten(3, x.shape[2:])
    if form != "position":
        rows = channel_rows(x, sign, normalize)
        mixed = torch.stack([(rows[:, j, :, None] * x.flatten(2)).sum(dim=1) for j in range(CHANNELS)], dim=1)
        y = y + state["gamma_channel"] * mixed
        maps["channel"] = rows[:, None, None]
    return y.unflatten(2, x.shape[2:]), maps


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 7)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    assert_equations(make(size, **options), small(*size), dual, options)


def test_widths_and_gains_are_the_papers():
    """Query and key are C/8 wide, value C, with biases; both gains start at 0."""
    module = make_attention("dual_attention", 64, 12)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "gamma_position": (), "gamma_channel": (),
        "query.weight": (8, 64, 1, 1), "query.bias": (8,), "key.weight": (8, 64, 1, 1), "key.bias": (8,),
        "value.weight": (64, 64, 1, 1), "value.bias": (64,),
    }  # fmt: skip
    assert list(module.gains()) == ["gamma_position", "gamma_channel"]
    assert list(make(form="channel").state_dict()) == ["gamma_channel"]
    assert list(make(form="position").gains()) == ["gamma_position"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_energies_do_not_overflow(dtype: torch.dtype):
    """Channel energies are computed in float32 under autocast."""
    module, rng = make((64, 64), torch.float32, form="channel"), torch.Generator().manual_seed(0)
    for scale, tolerance in ((4, 1e-3), (0.02, 1e-6)):  # energies beyond float16, and about 1
        x = (scale * torch.randn(1, CHANNELS, 64, 64, generator=rng)).to(dtype)
        with torch.autocast("cpu", dtype=dtype), record_attention(module) as maps:
            assert module(x).isfinite().all()
        found = maps[""].weights[:, 0, 0].double()
        torch.testing.assert_close(found, channel_rows(x.double()), rtol=0, atol=tolerance)

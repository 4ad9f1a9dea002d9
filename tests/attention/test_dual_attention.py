"""Dual attention against the paper's equations, one cell and one channel at a time."""

from collections.abc import Mapping

import pytest
import torch
from forms import assert_same_with_gradients
from torch import Tensor, nn

from sagan.attention import AttentionModule, make_attention, record_attention

CHANNELS = 8
FORMS = [
    pytest.param({}, id="default"),
    pytest.param({"form": "position", "bias": False, "ratio": 0.5}, id="position"),
    pytest.param({"form": "channel"}, id="channel"),
    pytest.param({"form": "channel", "sign": -1, "normalize": True}, id="channel-released-normalized"),
    pytest.param({"sign": -1, "ratio": 2.0}, id="released-wide-query"),
    pytest.param({"normalize": True}, id="normalized"),
]
SIZES = [(4, 4), (5, 3), (2, 7)]


def make(size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, the gains not 0."""
    torch.manual_seed(0)
    module = make_attention("dual_attention", CHANNELS, size, **options).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for gain, value in zip(module.gains().values(), (0.7, -0.4), strict=False):
        nn.init.constant_(gain, value)
    return module


def draw(*size: int) -> Tensor:
    """Small features: the channels' energies then do not make their softmax one-hot."""
    torch.manual_seed(1)
    return (0.3 * torch.randn(2, CHANNELS, *size, dtype=torch.float64)).requires_grad_()


def projected(name: str, image: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """A 1×1 convolution of an image (C, N)."""
    bias = state.get(f"{name}.bias")
    return state[f"{name}.weight"][:, :, 0, 0] @ image + (0 if bias is None else bias[:, None])


def position_rows(image: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """s_ji of eq. 1, row j over i: (C, N) -> (N, N)."""
    b, c = projected("query", image, state), projected("key", image, state)
    return torch.stack(
        [torch.stack([b[:, j] @ c[:, i] for i in range(b.shape[1])]).softmax(0) for j in range(len(b.T))]
    )


def channel_rows(image: Tensor, sign: int = 1, normalize: bool = False) -> Tensor:
    """x_ji of eq. 3, row j over i: (C, N) -> (C, C)."""
    scale = sign / (image.shape[1] if normalize else 1)
    return torch.stack([torch.stack([scale * (a_j @ a_i) for a_i in image]).softmax(0) for a_j in image])


def dual(
    x: Tensor, state: Mapping[str, Tensor], form: str = "both", sign: int = 1, normalize: bool = False, **_
) -> Tensor:
    """Eqs. 2 and 4, both added to x."""
    images = []
    for a in x.flatten(2):  # (C, N)
        y = a
        if form != "channel":
            s, d = position_rows(a, state), projected("value", a, state)
            e = torch.stack([(row * d).sum(dim=1) for row in s], dim=1)  # Σ_i s_ji D_i
            y = y + state["gamma_position"] * e
        if form != "position":
            rows = channel_rows(a, sign, normalize)
            y = y + state["gamma_channel"] * torch.stack([(row[:, None] * a).sum(dim=0) for row in rows])
        images.append(y)
    return torch.stack(images).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal eqs. 1-4."""
    module, x = make(size, **options), draw(*size)
    expected = dual(x, dict(module.named_parameters()), **options)
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


def test_the_released_sign_ranks_the_other_way_round():
    """sign -1 is the released softmax(max - E), which ranks in the opposite order."""
    x = draw(4, 5).detach() * 3
    rows = {sign: make(form="channel", sign=sign).attention_rows(x, torch.zeros(1, 2))["channel"] for sign in (1, -1)}
    energies = torch.stack([image @ image.T for image in x.flatten(2)])
    released = (energies.amax(dim=2, keepdim=True) - energies).softmax(dim=2)
    torch.testing.assert_close(rows[-1][:, 0, 0], released, rtol=0, atol=1e-12)
    assert rows[1].diagonal(dim1=3, dim2=4).mean() > 0.9
    assert rows[-1].diagonal(dim1=3, dim2=4).mean() < 0.01
    x = draw(4, 5)
    paper, code = (dual(x, {"gamma_channel": torch.tensor(1.0)}, "channel", sign) for sign in (1, -1))
    assert (paper - code).abs().max() > 0.1


def test_known_mistakes_differ():
    """The module differs from scaled and transposed softmaxes."""
    module, x = make(), draw(4, 5)
    state = dict(module.named_parameters())
    found, a = module(x)[0].flatten(1), x[0].flatten(1)
    query, key, value = (projected(name, a, state) for name in ("query", "key", "value"))
    energies = query.T @ key  # (N, N)
    by_channels = -0.4 * channel_rows(a) @ a
    for rows in (energies.softmax(0), (energies / 8).softmax(1), energies.T.softmax(1)):
        assert (a + 0.7 * value @ rows.T + by_channels - found).abs().max() > 1e-3
    transposed = a + 0.7 * value @ energies.softmax(1).T - 0.4 * channel_rows(a).T @ a
    assert (transposed - found).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_maps(options: dict, size: tuple[int, int]):
    """Rows belong to their cell and channel; each form has only its own maps."""
    module, x = make(size, **options), draw(*size)
    state, form = dict(module.named_parameters()), options.get("form", "both")
    points = torch.tensor([[0, 0], [size[0] - 1, 1], [1, size[1] - 1]])
    rows = module.attention_rows(x, points)
    assert list(rows) == list(module.map_kinds) == (["position", "channel"] if form == "both" else [form])
    if "position" in rows:
        full = torch.stack([position_rows(a, state) for a in x.flatten(2)])[:, points[:, 0] * size[1] + points[:, 1]]
        torch.testing.assert_close(rows["position"][:, 0].flatten(2), full, rtol=0, atol=1e-10)
    if "channel" in rows:
        chosen = {key: options[key] for key in ("sign", "normalize") if key in options}
        full = torch.stack([channel_rows(a, **chosen) for a in x.flatten(2)])
        torch.testing.assert_close(rows["channel"][:, 0, 0], full, rtol=0, atol=1e-10)


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
    x = torch.randn(2, 64, 12, 12)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_energies_do_not_overflow(dtype: torch.dtype):
    """Channel energies are computed in float32 under autocast."""
    module = make((64, 64), torch.float32, form="channel")
    torch.manual_seed(0)
    x = (4 * torch.randn(1, CHANNELS, 64, 64)).to(dtype)
    assert (x.flatten(2).double() @ x.flatten(2).double().transpose(1, 2)).max() > torch.finfo(torch.float16).max
    expected = torch.stack([channel_rows(a.double()) for a in x.flatten(2)])
    with torch.autocast("cpu", dtype=dtype), record_attention(module) as maps:
        assert module(x).isfinite().all()
    torch.testing.assert_close(maps[""].weights[:, 0, 0].double(), expected, rtol=0, atol=1e-3)
    near = torch.randn(1, CHANNELS, 64, 64).mul(0.02).to(dtype)  # energies about 1
    expected = torch.stack([channel_rows(a.double()) for a in near.flatten(2)])
    with torch.autocast("cpu", dtype=dtype):
        found = module.attention_rows(near, torch.zeros(1, 2))["channel"]
    torch.testing.assert_close(found[:, 0, 0].double(), expected, rtol=0, atol=1e-6)

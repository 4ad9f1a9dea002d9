"""The mechanisms and options of the contract tests, and helpers of all tests of mechanisms."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagan.attention import ATTENTION, KINDS, AttentionModule, make_attention
from sagan.layers.spectral_norm import hold_state

CHANNELS = 64
FORMS: dict[str, list[dict]] = {
    "self_attention": [{"pool": False, "value_ratio": 0.125}],
    "non_local": [
        {"form": "gaussian", "scale": True},
        {"form": "dot_product"},
        {"form": "concatenation"},
        {"pool": "before"},
        {"pool": "after", "scale": True},
    ],
    "em_attention": [{"gradient": "detached"}, {"bases": 5, "iterations": 1}],
    "dual_attention": [{"form": "position"}, {"form": "channel"}, {"sign": -1}],
    "augmented_conv": [{"value_ratio": 1.0}, {"relative": False}, {"pool": True}],
    "gated_positional": [{"heads": 8}, {"heads": 2, "mlp": True}],
    "transformer": [{"position": "sincos"}, {"position": "none", "gelu": "exact"}],
    "squeeze_excitation": [{"double": True}],
    "selective_kernel": [{"paths": 3}, {"norm": "group"}],
    "cbam": [{"norm": "batch"}],
    "spatial_transformer": [{"padding": "zeros", "transform": "similarity"}],
}
CASES = [
    pytest.param(name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
    for name in ATTENTION
    for options in [{}, *FORMS.get(name, [])]
]
each_form = pytest.mark.parametrize(("name", "options"), CASES)


def make(
    name: str, options: dict, size: tuple[int, int] = (6, 8), dtype: torch.dtype = torch.float64
) -> AttentionModule:
    """A module with no parameter at its initial value."""
    torch.manual_seed(0)
    module = make_attention(name, CHANNELS, size, **options).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for gain in module.gains().values():
        nn.init.constant_(gain, 0.7)
    return module


def draw(
    size: tuple[int, int] = (6, 8), batch: int = 2, dtype: torch.dtype = torch.float64, channels: int = CHANNELS
) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator, dtype=dtype).requires_grad_()


def randomized(
    name: str, channels: int, size: int | tuple[int, int], std: float, dtype: torch.dtype = torch.float64,
    gamma: float = 0.7, **options,
) -> AttentionModule:  # fmt: skip
    """A module whose parameters are drawn from N(0, std), except for gamma."""
    torch.manual_seed(0)
    module = make_attention(name, channels, size, **options).to(dtype)
    for key, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=std) if key != "gamma" else nn.init.constant_(parameter, gamma)
    return module


def assert_same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor], atol: float = 1e-9) -> None:
    """Compare two results, and the gradients of a random linear function of them with respect to `inputs`."""
    torch.testing.assert_close(found, expected, rtol=atol, atol=atol)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for gradient, by_loop in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, by_loop, rtol=atol, atol=atol)


def assert_maps(module: AttentionModule, x: Tensor, maps: Mapping[str, Tensor]) -> None:
    """The rows of some cells are those of the full maps (B, h, N, H', W'), and maps without rows are the whole maps."""
    assert module.map_kinds.keys() == maps.keys()
    height, width = x.shape[2:]
    cells = torch.tensor([[0, 0], [height - 1, 0], [1, width - 1]]).clamp(max=height - 1)
    found = module.attention_rows(x, cells)
    for name, full in maps.items():
        rows = full[:, :, cells @ torch.tensor([width, 1])] if KINDS[module.map_kinds[name]].per_query else full
        torch.testing.assert_close(found[name], rows, rtol=0, atol=1e-10)


def assert_equations(
    module: AttentionModule, x: Tensor, reference: Callable[..., tuple[Tensor, Mapping[str, Tensor]]], options: dict,
    atol: float = 1e-9,
) -> None:  # fmt: skip
    """Compare output, gradients and maps with those of `reference(x, state, **options)`. No state moves."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected, maps = reference(x, dict(module.named_parameters()) | dict(module.named_buffers()), **options)
    with hold_state(module):
        assert_same_with_gradients(module(x), expected, [x, *parameters.values()], atol)
    assert_maps(module, x, maps)


def projected(x: Tensor, name: str, state: Mapping[str, Tensor]) -> Tensor:
    """A 1×1 convolution as a product: (B, C, …) -> (B, D, …)."""
    y = torch.einsum("oc,bcn->bon", state[f"{name}.weight"].flatten(1), x.flatten(2)).unflatten(2, x.shape[2:])
    bias = state.get(f"{name}.bias")
    return y if bias is None else y + bias.view(-1, *[1] * (x.ndim - 2))


def normed(x: Tensor, name: str, state: Mapping[str, Tensor], norm: str, groups: int) -> Tensor:
    """Batch norm with statistics of the batch, group norm, or nothing, of (B, C, H, W)."""
    if norm == "none":
        return x
    gain, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if norm == "group":
        return F.group_norm(x, groups, gain, bias)
    return F.batch_norm(x, None, None, gain, bias, training=True)


def layer_normed(t: Tensor, name: str, state: Mapping[str, Tensor]) -> Tensor:
    """Layer norm over the last dimension."""
    return F.layer_norm(t, t.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


class Sizes(TorchDispatchMode):
    """`seen`: the number of elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result

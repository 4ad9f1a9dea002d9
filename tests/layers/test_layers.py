"""Resampling convolutions, batch norm, initialization and spectral norm, each against its plain form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sagan.layers.resampling
from sagan.config.load import load_config
from sagan.layers.normalization import BatchNorm, ClassEmbedding, ConditionalBatchNorm
from sagan.layers.resampling import DownsampleConv2d, UpsampleConv2d
from sagan.layers.spectral_norm import (
    Projection,
    SpectralNorm,
    hold_state,
    power_iterations,
    spectral_normalize,
    spectral_norms,
    state_without_spectral_norm,
)
from sagan.models.blocks import initialize
from sagan.models.generator import build_discriminator, build_generator


def plain(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What the layer is by definition."""
    if isinstance(layer, UpsampleConv2d):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return F.conv2d(x, layer.weight, layer.bias, padding=1)
    return F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (7, 7), (5, 8), (2, 9), (3, 2)])
@pytest.mark.parametrize("kind", [UpsampleConv2d, DownsampleConv2d])
@pytest.mark.parametrize("folding", [True, False])
def test_resampling_convolutions_equal_the_plain_form(
    kind: type, size: tuple[int, int], folding: bool, monkeypatch: pytest.MonkeyPatch
):
    """Values and derivatives up to the second order."""
    monkeypatch.setattr(sagan.layers.resampling, "FOLD_FROM_PIXELS", 0)
    torch.manual_seed(0)
    layer = kind(3, 4).double()
    layer.folding = folding
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs, weight, results = [x, layer.weight, layer.bias], None, []
    for y in (layer(x), plain(layer, x)):
        weight = torch.randn_like(y) if weight is None else weight
        slopes = torch.autograd.grad((y.tanh() * weight).sum(), inputs, create_graph=True)
        results.append([y, *slopes, *torch.autograd.grad(slopes[0].square().sum(), inputs)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_folding_starts_at_its_size():
    layer, pixels = UpsampleConv2d(3, 4), sagan.layers.resampling.FOLD_FROM_PIXELS
    assert layer.folds(1, 1, pixels)
    assert not layer.folds(1, 1, pixels - 1)
    layer.folding = False
    assert not layer.folds(1, 1, pixels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("eps", "momentum"), [(1e-5, 0.1), (1e-4, 0.001)])
def test_batch_norm_equals_torch(training: bool, eps: float, momentum: float):
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4, eps, momentum).double(), nn.BatchNorm2d(4, eps, momentum).double()
    with torch.no_grad():
        for tensor in [*ours.parameters(), *ours.buffers()]:
            tensor.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    ours.train(training), theirs.train(training)
    results = []
    for norm in (ours, theirs):
        x = torch.linspace(-2, 3, 2 * 4 * 5 * 3, dtype=torch.float64).sin().reshape(2, 4, 5, 3).requires_grad_()
        norm(x.detach() * 3 - 1)
        y = norm(x)
        gradients = torch.autograd.grad(y.exp().sum(), [x, norm.weight, norm.bias])
        results.append([y, *gradients, norm.running_mean, norm.running_var])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("class_norm", ["table", "linear"])
def test_conditional_batch_norm_equals_torch_and_a_lookup(training: bool, class_norm: str):
    torch.manual_seed(0)
    norm, theirs = ConditionalBatchNorm(4, 3, class_norm).double(), nn.BatchNorm2d(4, affine=False).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.train(training), theirs.train(training)
    x, labels = torch.randn(5, 4, 3, 2, dtype=torch.float64), torch.tensor([2, 0, 1, 2, 2])
    gain, bias = norm.gain.weight, norm.bias.weight
    gain, bias = (gain, bias) if class_norm == "table" else (1 + gain.T, bias.T)  # (K, C)
    expected = theirs(x) * gain[labels][:, :, None, None] + bias[labels][:, :, None, None]
    torch.testing.assert_close(norm(x, labels), expected, rtol=1e-10, atol=1e-10)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("class_norm", ["table", "linear"])
def test_class_weights_mix_the_classes(class_norm: str):
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(4, 3, class_norm).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 2, 2)
    first, second = norm(x, torch.tensor([0, 0, 0])), norm(x, torch.tensor([2, 2, 2]))
    mixed = norm(x, torch.tensor([[1, 0, 0], [0, 0, 1], [0.25, 0, 0.75]]))
    torch.testing.assert_close(mixed, torch.stack([first[0], second[1], 0.25 * first[2] + 0.75 * second[2]]))


def test_class_tables_begin_at_one_and_zero():
    """Initialization leaves the class tables at 1 and 0; the linear form has no biases."""
    table = ConditionalBatchNorm(4, 3, "table")
    initialize(table, "xavier")
    assert torch.equal(table.gain.weight, torch.ones(3, 4))
    assert torch.equal(table.bias.weight, torch.zeros(3, 4))
    linear = {name: tuple(p.shape) for name, p in ConditionalBatchNorm(4, 3, "linear").named_parameters()}
    assert linear == {"gain.weight": (4, 3), "bias.weight": (4, 3)}


def test_initialization_of_each_scheme():
    network = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Linear(64, 32), Projection(10, 16), ClassEmbedding(10, 16))
    torch.manual_seed(0)
    initialize(network, "orthogonal")
    for module in network:
        matrix = module.weight.flatten(1)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
    initialize(network, "xavier")
    for module, fans in zip(network, [(8 + 6) * 9, 64 + 32, 10 + 16, 10 + 16], strict=True):
        bound = (6 / fans) ** 0.5
        assert 0.9 * bound < module.weight.abs().max() <= bound
    assert not any(layer.bias.any() for layer in network[:2])


def normalized_layers() -> list[tuple[nn.Module, Tensor]]:
    """Each kind of normalized layer with an input."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 1), nn.Linear(8, 7), UpsampleConv2d(3, 5), DownsampleConv2d(3, 5)]
    maps = torch.randn(2, 3, 8, 8)
    return [*((layer, maps) for layer in layers), (Projection(6, 4), torch.tensor([0, 5, 5]))]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("fold_from", [0, 10**9])
def test_one_power_iteration_per_training_forward(index: int, fold_from: int, monkeypatch: pytest.MonkeyPatch):
    """Eval mode and hold_state make none."""
    monkeypatch.setattr(sagan.layers.resampling, "FOLD_FROM_PIXELS", fold_from)
    layer, x = normalized_layers()[index]
    spectral_normalize(layer)
    nn.init.normal_(layer.parametrizations.weight.original)  # u and v fit another matrix: an iteration moves them
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.eval()(x)
    with hold_state(layer):
        layer.train()(x)
        with hold_state(layer):
            layer(x)
        layer(x)
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())
    with torch.no_grad():
        layer(x)  # moves them without a graph too
    matrix = state["parametrizations.weight.original"].flatten(1)
    u = F.normalize(matrix @ state["parametrizations.weight.0._v"], dim=0)
    v = F.normalize(matrix.T @ u, dim=0)
    norm = layer.parametrizations.weight[0]
    torch.testing.assert_close(norm._u, u, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm._v, v, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(v, state["parametrizations.weight.0._v"], atol=1e-3)


def test_two_training_forwards_share_one_backward():
    layer, x = normalized_layers()[0]
    spectral_normalize(layer)
    (layer(x) + layer(x)).sum().backward()


def test_spectral_norm_brings_the_largest_singular_value_to_one():
    for layer, x in normalized_layers():
        spectral_normalize(layer)
        for _ in range(200):
            layer(x)
        with torch.no_grad():
            largest = torch.linalg.matrix_norm(layer.eval().weight.flatten(1), ord=2)
        torch.testing.assert_close(largest, torch.ones(()), rtol=1e-4, atol=0)


def test_what_is_normalized():
    network = nn.ModuleDict({
        "conv": nn.Conv2d(2, 2, 3),
        "linear": nn.Linear(2, 2),
        "projection": Projection(3, 2),
        "table": ConditionalBatchNorm(2, 3, "table"),
        "shared": ClassEmbedding(3, 2),
        "classes": ConditionalBatchNorm(2, 3, "linear"),
    })  # fmt: skip
    spectral_normalize(network, eps=1e-6)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, SpectralNorm)}
    layers = ("conv", "linear", "projection", "classes.gain", "classes.bias")
    assert set(norms) == {f"{layer}.parametrizations.weight.0" for layer in layers}
    assert {norm.eps for norm in norms.values()} == {1e-6}


def test_hold_state_holds_batch_norm():
    """It uses the batch's statistics; an error does not leave it held."""
    norm, x = BatchNorm(3), torch.randn(4, 3, 2, 2) + 5
    expected = copy.deepcopy(norm)(x)
    with hold_state(norm):
        torch.testing.assert_close(norm(x), expected)
    with pytest.raises(IndexError), hold_state(norm):  # not a batch: an error inside
        norm(torch.zeros(()))
    assert not norm.running_mean.any()
    norm(x)
    assert norm.running_mean.all()


def test_a_copy_is_independent_and_baking_keeps_the_function():
    for layer, x in normalized_layers():
        plain = copy.deepcopy(layer)
        spectral_normalize(layer)
        expected = layer.eval()(x)
        twin = copy.deepcopy(layer)
        for _ in range(3):
            nn.init.normal_(layer.parametrizations.weight.original)
            layer.train()(x)
        plain.load_state_dict(state_without_spectral_norm(twin))
        assert torch.equal(plain(x), expected)
        assert torch.equal(twin(x), expected)


COMPUTING = (
    "aten::mv",
    "aten::mm",
    "aten::cat",
    "aten::div.Tensor",
    "aten::linalg_vector_norm",
    "aten::copy_",
    "aten::clone",
)


@pytest.mark.parametrize("name", ["shapes32", "biggan-cifar10"])
@torch.no_grad()
def test_norms_advance_together_as_each_alone(name: str):
    """Bit for bit; only the launches of matrix products grow with the number of norms."""
    config = load_config(name, ["generator.channels=8", "discriminator.channels=16"])
    for network in (build_generator(config, 4), build_discriminator(config, 4)):
        expected = {}
        for key, norm, weight in spectral_norms(network):
            weight.add_(0.1 * torch.randn_like(weight))
            matrix = weight.flatten(1)
            u = F.normalize(matrix @ norm._v, dim=0, eps=norm.eps)
            expected[key] = u, F.normalize(u @ matrix, dim=0, eps=norm.eps)
        with Operations() as operations:
            power_iterations([(norm, weight) for _, norm, weight in spectral_norms(network)])
        for key, norm, _ in spectral_norms(network):
            assert torch.equal(norm._u, expected[key][0]), key
            assert torch.equal(norm._v, expected[key][1]), key
        computing = [name for name in operations.names if name in COMPUTING or name.startswith("aten::_foreach")]
        assert computing.count("aten::mv") == computing.count("aten::mm") == len(expected)
        assert len(computing) == 2 * len(expected) + 2 * 6


class Operations(TorchDispatchMode):
    """The names of all operations inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

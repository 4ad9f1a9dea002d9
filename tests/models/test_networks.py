"""Both networks against tests/reference.py, written from the block equations alone: values, gradients, moved state."""

import pytest
import torch
from network_cases import CASES, LARGE, Case, Inputs, discriminator_of, generator_of, output_of
from reference import Reference
from torch import nn

import sagan.layers.resampling
from sagan.config.load import load_config
from sagan.layers.spectral_norm import hold_state
from sagan.models.generator import Generator, build_discriminator, build_generator
from sagan.utils.errors import UserError

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_network = pytest.mark.parametrize("network_of", [generator_of, discriminator_of], ids=["G", "D"])


def reference_of(network: nn.Module, case: Case, hold: bool = False) -> Reference:
    """The reference with the state of `network`: its own tensors, so that gradients can be compared by name."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, _ in network.named_parameters():
        state[name].requires_grad_()
    generator = case.config.generator
    return Reference(
        state, training=network.training, hold=hold, norm_eps=generator.norm_eps, norm_momentum=generator.norm_momentum,
        last_norm_momentum=generator.last_norm_momentum or generator.norm_momentum,
        relu_shortcut=case.config.discriminator.relu_shortcut, hierarchical=generator.hierarchical,
    )  # fmt: skip


def compare(network: nn.Module, inputs: Inputs, case: Case, hold: bool = False) -> None:
    """One forward and backward of both; then the state that the forward left behind."""
    reference = reference_of(network, case, hold)
    by_equations = reference.generator if isinstance(network, Generator) else reference.discriminator
    found, expected = output_of(network, inputs), by_equations(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names = [name for name, _ in network.named_parameters()]
    gradients = torch.autograd.grad((found * weight).sum(), [inputs[0], *network.parameters()])
    leaves = [inputs[0], *(reference.state[name] for name in names)]
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    for name, gradient, by_loop in zip(["input", *names], gradients, expected_gradients, strict=True):
        assert "gamma" not in name or gradient != 0
        atol = 1e-9 * float(by_loop.abs().max().clamp(min=1))
        torch.testing.assert_close(gradient, by_loop, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    after = {name: tensor.detach() for name, tensor in (reference.state | reference.moved).items()}
    torch.testing.assert_close(dict(network.state_dict()), after, rtol=1e-9, atol=1e-9)


@each_case
@pytest.mark.parametrize(("training", "fold_from"), [(True, 0), (False, 10**9)], ids=["train-folded", "eval-plain"])
@each_network
def test_networks_equal_the_equations(case: Case, training: bool, fold_from: int, network_of, monkeypatch):
    monkeypatch.setattr(sagan.layers.resampling, "FOLD_FROM_PIXELS", fold_from)
    network, inputs = network_of(case)
    compare(network.train(training), inputs, case)


@each_network
def test_held_networks_equal_the_equations(network_of):
    """A training forward inside hold_state uses batch statistics and updates nothing."""
    network, inputs = network_of(CASES[2])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with hold_state(network):
        compare(network, inputs, CASES[2], hold=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@each_network
def test_256_pixels_equal_the_equations(network_of):
    network, (x, _) = network_of(LARGE)
    reference = reference_of(network.eval(), LARGE)
    with torch.no_grad():
        expected = (reference.generator if network_of is generator_of else reference.discriminator)(x[:1], None)
        torch.testing.assert_close(output_of(network, (x[:1], None)), expected, rtol=1e-9, atol=1e-9)


def test_state_dict_keys():
    config = load_config(None, ["generator.channels=4", "discriminator.channels=4"])
    parts = ("query", "key", "value", "out")
    generator = {name.rsplit(".", 1)[0] for name, _ in build_generator(config, 2).named_parameters()}
    biased = ["linear", "conv", *(f"blocks.{i}.{name}" for i in range(3) for name in ("conv1", "conv2", "shortcut"))]
    weights = [*biased, *(f"attention.16x16.{part}" for part in parts)]
    tables = {
        f"blocks.{i}.{norm}.{table}" for i in range(3) for norm in ("norm1", "norm2") for table in ("gain", "bias")
    }
    bare = {"norm", "attention.16x16"}  # weight and bias; gamma
    assert generator == {f"{name}.parametrizations.weight" for name in weights} | {*biased} | tables | bare
    discriminator = {name.rsplit(".", 1)[0] for name, _ in build_discriminator(config, 2).named_parameters()}
    biased = ["head.linear", *(f"trunk.blocks.{i}.{name}" for i in range(4) for name in ("conv1", "conv2"))]
    biased += ["trunk.blocks.0.shortcut", "trunk.blocks.1.shortcut"]
    weights = [*biased, "head.embedding", *(f"trunk.attention.16x16.{part}" for part in parts)]
    bare = {"trunk.attention.16x16"}
    assert discriminator == {f"{name}.parametrizations.weight" for name in weights} | {*biased} | bare


def test_builds_are_drawn_from_the_seed_alone():
    """And leave the global random state unchanged."""
    config = CASES[0].config
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_generator(config, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = build_generator(config, 3).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other = build_generator(config.model_copy(update={"seed": 1}), 3).state_dict()
    name = "linear.parametrizations.weight.original"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("generator.attention.16={name: sel}", r"generator.attention.16.*'sel'.*known:.*self_attention"),
        ("generator.attention.16={name: self_attention, poool: true}", r"generator.attention.16.*poool.*known:.*pool"),
        ("generator.attention.16={name: self_attention, value_ratio: wide}", r"generator.attention.16"),
        ("generator.attention.64=self_attention", r"generator.attention.*64x64.*known: 8, 16, 32"),
        ("discriminator.attention.16={name: sel}", r"discriminator.attention.16.*'sel'.*known:"),
        ("discriminator.channels=1", r"discriminator.attention.16.*channels"),
        ("discriminator.attention.4=self_attention", r"discriminator.attention.*4x4.*known: 16, 8$"),
    ],
)
def test_attention_mistakes_are_the_users(setting: str, message: str):
    build = build_generator if setting.startswith("generator") else build_discriminator
    with pytest.raises(UserError, match=message) as error:
        build(load_config(None, [setting]), 2)
    assert "\n" not in str(error.value)


@each_network
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_labels_must_fit_the_network(case: Case, network_of):
    network, (x, labels) = network_of(case)
    with pytest.raises(ValueError, match="label"):
        network(x, torch.zeros(3, dtype=torch.long) if labels is None else None)

"""Both networks against tests/reference.py, written from the block equations alone: values, gradients, moved state."""

from dataclasses import dataclass

import pytest
import torch
from reference import Reference
from torch import Tensor, nn

import sagan.layers
from sagan.attention import record_attention
from sagan.config import Config, load_config
from sagan.errors import UserError
from sagan.networks import Discriminator, Generator, build_discriminator, build_generator
from sagan.spectral_norm import hold_state


@dataclass(frozen=True)
class Case:
    """A small pair of networks, and how the reference is told of what stands in no state dict."""

    name: str
    num_classes: int
    settings: tuple[str, ...]

    @property
    def config(self) -> Config:
        return load_config(None, list(self.settings))


STUDIO = (
    "generator.class_norm=linear",
    "generator.norm_eps=1.0e-4",
    "generator.init=orthogonal",
    "generator.spectral_norm_eps=1.0e-6",
    "discriminator.init=orthogonal",
    "discriminator.spectral_norm_eps=1.0e-6",
    "discriminator.relu_shortcut=true",
)
CASES = [
    Case("classes-32", 3, (
        "generator.channels=6", "generator.attention={8: self_attention, 32: self_attention}",
        "discriminator.channels=6", "discriminator.attention={16: self_attention, 8: self_attention}",
    )),
    Case("no-classes-32", 0, (
        "generator.channels=4", "discriminator.channels=8", "discriminator.widths=[1, 2, 2, 3]", "generator.norm_momentum=0.3",
    )),
    Case("studio-32", 4, (
        *STUDIO, "generator.channels=4", "discriminator.channels=4", "discriminator.widths=[2, 2, 2, 2]",
    )),
    Case("classes-64", 2, (
        "data.resolution=64", "generator.channels=4", "generator.attention={16: self_attention, 32: self_attention}",
        "discriminator.channels=4", "discriminator.attention={16: self_attention, 4: self_attention}",
    )),
    Case("studio-64", 3, (
        *STUDIO, "data.resolution=64", "generator.channels=4", "discriminator.channels=8",
    )),
    Case("official-128", 5, (
        "data.resolution=128", "generator.channels=4", "discriminator.channels=4", "generator.norm_momentum=0.001",
        "generator.last_norm_momentum=0.0001",
    )),
    Case("bare-32", 2, (
        "generator.channels=4", "discriminator.channels=4", "generator.spectral_norm=false",
        "discriminator.spectral_norm=false", "generator.attention={}", "discriminator.attention={}",
    )),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def scatter(network: nn.Module) -> nn.Module:
    """Move every parameter and statistic off its initial value, so that nothing is 0, 1 or normalised by accident."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
            if name.endswith(".gamma"):
                assert buffer != 0
    return network


def generator_of(case: Case) -> tuple[Generator, tuple[Tensor, Tensor | None]]:
    generator = build_generator(case.config, case.num_classes).double()
    z = torch.randn(3, 128, dtype=torch.float64, requires_grad=True)
    return scatter(generator), (z, torch.tensor([1, 0, 1]) if case.num_classes else None)


def discriminator_of(case: Case) -> tuple[Discriminator, tuple[Tensor, Tensor | None]]:
    discriminator = build_discriminator(case.config, case.num_classes).double()
    images = torch.randn(3, 3, case.config.data.resolution, case.config.data.resolution, dtype=torch.float64)
    return scatter(discriminator), (images.requires_grad_(), torch.tensor([1, 0, 1]) if case.num_classes else None)


def reference_of(network: nn.Module, case: Case, hold: bool = False) -> Reference:
    """The reference with the state of `network`: its own tensors, so that gradients can be compared by name."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, _ in network.named_parameters():
        state[name].requires_grad_()
    generator = case.config.generator
    last = generator.last_norm_momentum
    return Reference(
        state,
        training=network.training,
        hold=hold,
        norm_eps=generator.norm_eps,
        norm_momentum=generator.norm_momentum,
        last_norm_momentum=generator.norm_momentum if last is None else last,
        relu_shortcut=case.config.discriminator.relu_shortcut,
    )


def output_of(network: nn.Module, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
    result = network(*inputs)
    return result if isinstance(network, Generator) else result.logits


def compare(network: nn.Module, inputs: tuple[Tensor, Tensor | None], case: Case, hold: bool = False) -> None:
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
    for name, gradient, expected_gradient in zip(["input", *names], gradients, expected_gradients, strict=True):
        assert "gamma" not in name or gradient != 0
        scale = float(expected_gradient.abs().max().clamp(min=1))
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}")
    after = reference.state | reference.moved
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, after[name].detach(), rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@each_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fold_from", [0, 10**9], ids=["folded", "plain"])
@pytest.mark.parametrize("network_of", [generator_of, discriminator_of])
def test_networks_equal_the_equations(case: Case, training: bool, fold_from: int, network_of, monkeypatch):
    """Breaks when any block, norm, attention, head, gradient or moved buffer is other than in tests/reference.py."""
    monkeypatch.setattr(sagan.layers, "FOLD_FROM_PIXELS", fold_from)
    network, inputs = network_of(case)
    compare(network.train(training), inputs, case)


@pytest.mark.parametrize("case", CASES[2:3], ids=lambda case: case.name)
@pytest.mark.parametrize("network_of", [generator_of, discriminator_of])
def test_held_networks_equal_the_equations(case: Case, network_of):
    """Breaks when a training forward inside hold_state moves a buffer, iterates, or uses running statistics."""
    network, inputs = network_of(case)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with hold_state(network):
        compare(network, inputs, case, hold=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("network_of", [generator_of, discriminator_of])
def test_256_pixels_equal_the_equations(network_of):
    """Breaks when the widths or the down-sampling at 256 px do not fit the equations."""
    case = Case("256", 0, ("data.resolution=256", "generator.channels=4", "discriminator.channels=4", "discriminator.attention={32: self_attention}", "generator.attention={32: self_attention}"))  # fmt: skip
    network, (x, labels) = network_of(case)
    reference = reference_of(network.eval(), case)
    with torch.no_grad():
        expected = (reference.generator if network_of is generator_of else reference.discriminator)(x[:1], labels)
        torch.testing.assert_close(output_of(network, (x[:1], labels)), expected, rtol=1e-9, atol=1e-9)


@each_case
def test_shapes_and_ranges(case: Case):
    """Breaks when images have another size or leave [-1, 1], logits another shape, or a plain discriminator adds penalties."""
    generator, (z, labels) = generator_of(case)
    images = generator(z, labels)
    resolution = case.config.data.resolution
    assert images.shape == (3, 3, resolution, resolution)
    assert images.abs().max() <= 1
    logits, penalties = discriminator_of(case)[0](images, labels)
    assert logits.shape == (3,)
    assert penalties == {}


def test_state_dict_keys():
    """Breaks when a weight that snapshots name is renamed, added or lost."""
    case = Case("keys", 2, ("generator.channels=4", "discriminator.channels=4"))
    generator = {name.rsplit(".", 1)[0] for name, _ in build_generator(case.config, 2).named_parameters()}
    layers = [f"blocks.{i}.{name}" for i in range(3) for name in ("conv1", "conv2", "shortcut")]
    weights = ["linear", "conv", *layers, *(f"attention.16x16.{name}" for name in ("query", "key", "value", "out"))]
    biased = ["linear", "conv", *layers]
    tables = [f"blocks.{i}.{norm}.{table}" for i in range(3) for norm in ("norm1", "norm2") for table in ("gain", "bias")]
    assert generator == {*(f"{name}.parametrizations.weight" for name in weights), *biased, *tables, "norm", "attention.16x16"}
    discriminator = {name.rsplit(".", 1)[0] for name, _ in build_discriminator(case.config, 2).named_parameters()}
    layers = [f"trunk.blocks.{i}.{name}" for i in range(4) for name in ("conv1", "conv2")]
    layers += [f"trunk.blocks.{i}.shortcut" for i in range(2)]
    attention = [f"trunk.attention.16x16.{name}" for name in ("query", "key", "value", "out")]
    weights = [*layers, *attention, "head.linear", "head.embedding"]
    assert discriminator == {
        *(f"{name}.parametrizations.weight" for name in weights), *layers, "head.linear", "trunk.attention.16x16",
    }  # fmt: skip


@pytest.mark.parametrize(("network_of", "place"), [(generator_of, "attention."), (discriminator_of, "trunk.attention.")])
@pytest.mark.parametrize("training", [True, False])
def test_recording_attention_changes_no_bit(network_of, place: str, training: bool):
    """Breaks when listening moves spectral-norm vectors, batch statistics or random state, or changes a value or gradient."""

    def run(record: bool) -> dict[str, Tensor]:
        network, inputs = network_of(CASES[0])
        network.float().train(training)
        inputs = (inputs[0].detach().float().requires_grad_(), inputs[1])
        torch.manual_seed(4)
        if record:
            with record_attention(network, torch.tensor([[0.5, 0.5], [0.1, 0.9]])) as maps:
                output = output_of(network, inputs)
            sizes = (8, 32) if place == "attention." else (16, 8)
            assert {name: tuple(m.weights.shape) for name, m in maps.items()} == {
                f"{place}{n}x{n}": (3, 1, 2, n // 2, n // 2) for n in sizes
            }
        else:
            output = output_of(network, inputs)
        output.square().sum().backward()
        gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
        return {"output": output, "random state": torch.get_rng_state(), **gradients, **network.state_dict()}

    plain, recorded = run(False), run(True)
    assert list(plain) == list(recorded)
    assert [name for name in plain if not torch.equal(plain[name], recorded[name])] == []


@pytest.mark.parametrize("network_of", [generator_of, discriminator_of])
def test_recorded_rows_are_those_of_the_normalised_weights(network_of):
    """Breaks when a recorded map is computed from other weights or features than the forward's."""
    network, inputs = network_of(CASES[0])
    name = "attention.8x8" if isinstance(network, Generator) else "trunk.attention.8x8"
    module, seen = network.get_submodule(name), []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cells = torch.tensor([[0, 0], [7, 3]])
    with record_attention(network.eval(), (cells + 0.5) / 8) as maps:
        network(*inputs)
    handle.remove()
    rows = module.attention_rows(seen[0], cells)["attention"]
    torch.testing.assert_close(maps[name].weights, rows, rtol=0, atol=1e-10)


def test_builds_are_drawn_from_the_seed_alone():
    """Breaks when a build depends on, or moves, the global random state, or two seeds give one network."""
    config = CASES[0].config
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_generator(config, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = build_generator(config, 3).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other = build_generator(config.model_copy(update={"seed": 1}), 3).state_dict()
    assert not torch.equal(first["linear.parametrizations.weight.original"], other["linear.parametrizations.weight.original"])


@pytest.mark.parametrize(
    ("network", "setting", "message"),
    [
        ("generator", "generator.attention.16={name: self_atention}", "generator.attention.16.*self_atention.*known:.*self_attention"),
        ("discriminator", "discriminator.attention.16={name: self_attention, poool: true}", "discriminator.attention.16.*poool.*known:.*pool"),
        ("generator", "generator.attention.16={name: self_attention, value_ratio: wide}", "generator.attention.16"),
        ("discriminator", "discriminator.channels=1", "discriminator.attention.16.*channels"),
        ("discriminator", "discriminator.attention.4=self_attention", "discriminator.attention.*4x4.*known: 16, 8"),
    ],
)  # fmt: skip
def test_attention_mistakes_are_the_users(network: str, setting: str, message: str):
    """Breaks when a misspelt mechanism or option, or a place that no block outputs, is not refused in one clear line."""
    build = {"generator": build_generator, "discriminator": build_discriminator}[network]
    with pytest.raises(UserError, match=message) as error:
        build(load_config(None, [setting]), 2)
    assert "\n" not in str(error.value)


def test_labels_must_fit_the_networks():
    """Breaks when missing labels, or labels that nothing reads, pass in silence."""
    for case, labels in ((CASES[0], None), (CASES[1], torch.zeros(3, dtype=torch.long))):
        for network, (x, _) in (generator_of(case), discriminator_of(case)):
            with pytest.raises(ValueError, match="label"):
                network(x, labels)

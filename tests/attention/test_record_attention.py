"""Attention can be looked at without changing what it computes: alone, and inside both networks."""

from contextlib import nullcontext

import pytest
import torch
from network_cases import CASES, discriminator_of, generator_of, output_of
from torch import Tensor, nn

from sagan.attention import make_attention, record_attention
from sagan.models.generator import Generator

each_network = pytest.mark.parametrize("network_of", [generator_of, discriminator_of], ids=["G", "D"])


def attention() -> nn.Module:
    """Self-attention in float64 on 6×8 maps with gamma not 0."""
    torch.manual_seed(0)
    module = make_attention("self_attention", 16, (6, 8)).double()
    nn.init.constant_(module.get_parameter("gamma"), 0.7)
    return module


@pytest.mark.parametrize("cells", [torch.tensor([[0, 0], [5, 7], [3, 4]]), None], ids=["points", "all"])
def test_recorded_maps_are_those_of_the_last_forward(cells: Tensor | None):
    network = nn.Sequential(nn.Conv2d(3, 16, 1).double(), attention())
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    points = None if cells is None else (cells + 0.5) / torch.tensor([6.0, 8.0])
    cells = torch.cartesian_prod(torch.arange(6), torch.arange(8)) if cells is None else cells
    expected = network[1].attention_rows(network[0](x), cells)["attention"]
    with record_attention(network, points) as maps:
        network(torch.randn_like(x))
        network(x)
    assert list(maps) == ["1"]
    assert maps["1"].kind == "softmax row"
    assert not maps["1"].weights.requires_grad
    assert maps["1"].weights.shape == (2, 1, len(cells), 3, 4)
    torch.testing.assert_close(maps["1"].weights, expected, rtol=0, atol=1e-10)


def test_recording_ends_with_its_block():
    """Also after an error."""
    module, x = attention(), torch.randn(1, 16, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\[0, 1\)"), record_attention(module, torch.tensor([[0.5, 1.0]])):
        module(x)
    assert module.recorder is None
    with record_attention(module) as maps:
        pass
    module(x)
    assert maps == {}


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_recording_changes_no_bit(network_of, training: bool):
    def run(record: bool) -> dict[str, Tensor]:
        network, (x, labels) = network_of(CASES[0])
        network.float().train(training)
        x = x.detach().float().requires_grad_()
        torch.manual_seed(4)
        points = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
        with record_attention(network, points) if record else nullcontext({}) as maps:
            output, keys = output_of(network, (x, labels)), list(network.state_dict())
        assert len(maps) == (2 if record else 0)
        assert keys == list(network.state_dict())
        output.square().sum().backward()
        gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
        state = {"output": output, "input gradient": x.grad, "random state": torch.get_rng_state()}
        return state | gradients | network.state_dict()

    plain, recorded = run(False), run(True)
    assert list(plain) == list(recorded)
    assert [name for name in plain if not torch.equal(plain[name], recorded[name])] == []


@each_network
def test_recorded_rows_are_those_of_the_normalized_weights(network_of):
    network, inputs = network_of(CASES[0])
    prefix, sizes = ("attention", (8, 32)) if isinstance(network, Generator) else ("trunk.attention", (16, 8))
    module, seen = network.get_submodule(f"{prefix}.8x8"), []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cells = torch.tensor([[0, 0], [7, 3]])
    with record_attention(network.eval(), (cells + 0.5) / 8) as maps:
        network(*inputs)
    handle.remove()
    shapes = {name: tuple(found.weights.shape) for name, found in maps.items()}
    assert shapes == {f"{prefix}.{n}x{n}": (3, 1, 2, n // 2, n // 2) for n in sizes}
    rows = module.attention_rows(seen[0], cells)["attention"]
    torch.testing.assert_close(maps[f"{prefix}.8x8"].weights, rows, rtol=0, atol=1e-10)

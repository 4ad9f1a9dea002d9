"""Interventions equal literal references, change nothing else, and measure what they claim."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import sagan
from forms import CASES, draw, make
from torch import Tensor, nn

from sagan.attention import SelfAttention, record_attention
from sagan.config.load import load_config
from sagan.data.shapes import CLASSES, object_masks, placement, render_many
from sagan.inspection.intervention import Change, causal_maps, cells_in, edges, intervene, partner_cut
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator, build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot
from sagan.sampling.sampler import latents
from sagan.utils.errors import UserError

EDITABLE = [case for case in CASES if make(*case.values).editable]  # type: ignore[arg-type]
FIXED = [case for case in CASES if not make(*case.values).editable]  # type: ignore[arg-type]
each_editable = pytest.mark.parametrize(("name", "options"), EDITABLE)


class Net(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def network(name: str, options: dict, size: tuple[int, int] = (6, 8)) -> tuple[Net, Tensor]:
    return Net(make(name, options, size)).eval(), draw(size)


def random_cut(net: Net, share: float = 0.4) -> Tensor:
    (h, w), (kh, kw) = net.layer.map_sizes  # type: ignore[union-attr, misc]
    return torch.rand(2, 1, h * w, kh * kw, generator=torch.Generator().manual_seed(2)) < share


def rows_of(net: Net, x: Tensor) -> Tensor:
    with record_attention(net) as maps:
        net(x)
    return next(m.weights for m in maps.values() if m.kind == "softmax row").flatten(3)  # (B, h, H·W, M)


def literal(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0, edit=None) -> Tensor:
    """Softmax attention by its definition, edge by edge of each query."""
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    key, value = (each if move is None else each[move] for each, move in ((key, edit.keys), (value, edit.values)))
    for b, h, n in np.ndindex(*query.shape[:3]):
        kept = [
            m for m in range(key.shape[2]) if edit.cut is None or not edit.cut.expand(len(query), 1, -1, -1)[b, 0, n, m]
        ]
        weights = {m: torch.exp(scale * (query[b, h, n] * key[b, h, m]).sum()) for m in kept}
        total = sum(weights.values())
        for m, weight in weights.items():
            out[b, h, n] += weight / total * value[b, h, m]
        out[b, h, n] *= 1 if edit.heads is None else edit.heads[h]
    return out


@each_editable
def test_cut_edges_equal_the_definition(name: str, options: dict, monkeypatch: pytest.MonkeyPatch):
    net, x = network(name, options, (2, 4))
    cut = random_cut(net)
    cut[0, 0, 1] = True  # a query without any edge
    change = Change(cut=cut, heads=torch.tensor(0.5).repeat(getattr(net.layer, "heads", 1)), keys=torch.tensor([1, 0]))
    with intervene(net, {"layer": change}):
        found = net(x)
        monkeypatch.setattr(f"{type(net.layer).__module__}.dot_product_attention", literal)
        torch.testing.assert_close(found, net(x), rtol=0, atol=1e-10)


@each_editable
def test_maps_after_a_cut_are_renormalized(name: str, options: dict):
    net, x = network(name, options)
    before, cut = rows_of(net, x), random_cut(net)
    with intervene(net, {"layer": Change(cut=cut)}):
        after = rows_of(net, x)
    if net.layer.map_sizes[0] != net.layer.resolution:  # type: ignore[union-attr]
        pytest.skip("rows between pooled queries are interpolated; the outputs are compared above")
    expected = before.masked_fill(cut, 0)
    torch.testing.assert_close(after, expected / expected.sum(3, keepdim=True), rtol=0, atol=1e-12)
    with intervene(net, {"layer": Change(keys=torch.tensor([0, 0]))}):
        after = rows_of(net, x)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


@each_editable
def test_nothing_cut_changes_nothing(name: str, options: dict):
    net, x = network(name, options)
    plain, rows = net(x), rows_of(net, x)
    with intervene(net, {"layer": Change()}):
        assert torch.equal(net(x), plain)
    with intervene(net, {"layer": Change(cut=torch.zeros(1, 1, 1, 1, dtype=torch.bool))}):
        torch.testing.assert_close(net(x), plain, rtol=0, atol=1e-12)
        torch.testing.assert_close(rows_of(net, x), rows, rtol=0, atol=1e-12)
    assert torch.equal(net(x), plain)


def test_without_any_edge_a_layer_adds_nothing():
    net, x = network("self_attention", {})
    with intervene(net, {"layer": Change(cut=torch.ones(1, 1, 1, 1, dtype=torch.bool))}):
        assert torch.equal(net(x), x)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_gain_scales_what_a_layer_changes(name: str, options: dict):
    net, x = network(name, options)
    change = net(x) - x
    for gain in (0.0, 1.5):
        with intervene(net, {"layer": Change(gain=gain)}):
            torch.testing.assert_close(net(x), x + gain * change)


def test_a_head_without_weight_equals_a_head_without_edges():
    net, x = network("transformer", {"heads": 2})
    heads = torch.ones(net.layer.heads, dtype=torch.float64)  # type: ignore[arg-type]
    heads[1] = 0
    with intervene(net, {"layer": Change(heads=heads)}):
        found = net(x)
    with intervene(net, {"layer": Change(cut=(heads == 0)[:, None, None])}):
        torch.testing.assert_close(net(x), found)
    assert not torch.allclose(net(x), found)


def test_keys_and_values_of_another_image():
    net, x = network("self_attention", {"pool": False})
    both = torch.tensor([1, 0])
    with intervene(net, {"layer": Change(keys=both, values=both)}):
        found, rows = net(x), rows_of(net, x)
    layer = net.layer
    for own, other in ((0, 1), (1, 0)):
        query, key, value = (
            f(x[i : i + 1]).flatten(2)[0] for f, i in ((layer.query, own), (layer.key, other), (layer.value, other))
        )  # type: ignore[operator]
        torch.testing.assert_close(rows[own, 0], (query.T @ key).softmax(1))
        attended = value @ (query.T @ key).softmax(1).T  # (e, N)
        expected = x[own] + layer.gamma * layer.out(attended.unflatten(1, (6, 8))[None])[0]  # type: ignore[operator]
        torch.testing.assert_close(found[own], expected)


@each_editable
def test_gradients_flow_through_a_cut(name: str, options: dict):
    net, x = network(name, options, (4, 4))
    with intervene(net, {"layer": Change(cut=random_cut(net))}):
        assert torch.autograd.gradcheck(net, x, fast_mode=True)


def test_an_error_inside_restores_the_network_and_blocks_nest():
    net, x = network("self_attention", {})
    plain, cut = net(x), Change(cut=random_cut(net))
    with intervene(net, {"layer": cut}):
        outer = net(x)
        with pytest.raises(RuntimeError), intervene(net, {"layer": Change(gain=0)}):
            net(x[0, 0])
        assert torch.equal(net(x), outer)
    assert torch.equal(net(x), plain)


@pytest.mark.parametrize(("name", "options"), FIXED)
def test_a_mechanism_without_softmax_rows_is_refused(name: str, options: dict):
    net, _ = network(name, options)
    with (
        pytest.raises(UserError, match=f"layer: {name} has no softmax"),
        intervene(net, {"layer": Change(heads=torch.ones(1))}),
    ):
        pass


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("lyer", Change(), "did you mean layer"),
        ("layer", Change(cut=torch.zeros(7, 12, dtype=torch.bool)), "7 cells is outside its query map of 6x8"),
        ("layer", Change(cut=torch.zeros(48, 48, dtype=torch.bool)), "48 cells is outside its key map of 3x4"),
    ],
)
def test_bad_regions_and_layers(layer: str, change: Change, message: str):
    net, _ = network("self_attention", {})
    with pytest.raises(UserError, match=message), intervene(net, {layer: change}):
        pass


def test_edges_and_regions():
    queries, keys = torch.zeros(2, 2, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    queries[0, 1] = keys[0, 2] = True
    assert edges(queries, keys).nonzero().tolist() == [[0, 1, 2]]
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[:2, :3] = True
    assert cells_in(region, (4, 4)).nonzero().tolist() == [[0, 0], [0, 1]]
    assert cells_in(region, (4, 4), share=0.6).nonzero().tolist() == [[0, 0]]
    with pytest.raises(UserError, match="covers no cell of a map of 2x2"):
        cells_in(region, (2, 2), share=0.9)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    config = load_config(None, ["generator.channels=8", "generator.attention={8: self_attention, 16: em_attention}"])
    generator = remove_spectral_norm(build_generator(config, len(CLASSES), CLASSES)).eval()
    for module in generator.attention.values():
        module.gamma.data.fill_(2.0)  # type: ignore[union-attr]
        for parameter in module.parameters():
            parameter.data.mul_(3)
    return generator


def test_causal_maps_equal_cutting_by_hand(generator: Generator):
    z, labels = latents([3, 4], generator.z_dim), torch.tensor([1, 2])
    points = torch.tensor([[[0.1, 0.9]], [[0.5, 0.5]]], dtype=torch.float64)
    found = causal_maps(generator, "attention.8x8", z, labels, points)
    assert found.attention.shape == found.effects.shape == (2, 1, 4, 4)
    with torch.no_grad():
        whole = generator(z, labels)
        near = [(slice(0, 2), slice(6, 8)), (slice(3, 6), slice(3, 6))]  # 3×3 cells around the point, inside the map
        for image, (rows, columns) in enumerate(near):
            for key in range(0, 16, 5):
                cut = torch.zeros(8, 8, 16, dtype=torch.bool)
                cut[rows, columns, key] = True
                with intervene(generator, {"attention.8x8": Change(cut=cut.flatten(0, 1))}):
                    change = 127.5 * (generator(z, labels) - whole)[image]  # (3, 32, 32)
                pixels = change[:, 4 * rows.start : 4 * rows.stop, 4 * columns.start : 4 * columns.stop]
                expected = pixels.square().mean().sqrt()
                torch.testing.assert_close(found.effects[image, 0].flatten()[key], expected, rtol=1e-3, atol=1e-3)
    assert found.effects.min() > 0.01
    assert -1 <= found.rank_correlations().min() <= found.rank_correlations().max() <= 1


def test_an_unused_layer_has_no_effect_and_no_correlation(generator: Generator):
    with intervene(generator, {"attention.8x8": Change(gain=0)}):
        found = causal_maps(
            generator, "attention.8x8", latents([0], generator.z_dim), torch.tensor([0]), torch.rand(1, 2, 2)
        )
    assert found.effects.count_nonzero() == 0
    assert len(found.rank_correlations()) == 0
    assert "the same for every key" in found.describe()


def test_effects_on_the_logit_of_a_discriminator():
    torch.manual_seed(0)
    config = load_config(
        None, ["discriminator.channels=8", "discriminator.attention={16: self_attention}", "data.resolution=32"]
    )
    discriminator = Discriminator(config.discriminator, 32, 0).eval()
    module = next(m for m in discriminator.modules() if isinstance(m, SelfAttention))
    module.gamma.data.fill_(2.0)  # type: ignore[union-attr]
    x, points = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 1, 2)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    found = causal_maps(discriminator, "trunk.attention.16x16", x, None, points)
    assert found.effects.shape == (1, 1, 8, 8)
    assert found.effects.max() > 0
    assert found.unit == "the logit"
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())


class Painter(nn.Module):
    """Draws the data's scenes. If the objects do not attend to each other, the right one gets another hue."""

    z_dim, resolution, class_names = 8, 32, CLASSES

    def __init__(self, count: int):
        super().__init__()
        self.images = torch.from_numpy(render_many(count, 32)[0])
        self.masks = torch.from_numpy(np.stack([object_masks(placement(index), 32) for index in range(count)])).float()
        self.z = latents(range(count), self.z_dim)
        self.layer = SelfAttention(8, 16)
        for parameter in self.layer.parameters():
            parameter.data.zero_()
        left, right = torch.eye(8)[:2]
        self.layer.query.weight.data[0, :, 0, 0] = 20 * (left - right)
        self.layer.key.weight.data[0, :, 0, 0] = (
            right - left
        )  # the logit of an edge to the partner is 20, to itself -20
        self.layer.value.weight.data[0, :, 0, 0] = left + right
        self.layer.out.weight.data[2, 0, 0, 0] = 1  # channel 2: the attention to an object
        self.layer.gamma.data.fill_(1.0)  # type: ignore[union-attr]

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        index = torch.cdist(z, self.z).argmin(1)
        images, masks = self.images[index].permute(0, 3, 1, 2), self.masks[index]
        cells = nn.functional.avg_pool2d(masks, 2)  # (B, 2, 16, 16)
        to_object = self.layer(nn.functional.pad(cells, (0, 0, 0, 0, 0, 6)))[:, 2]
        whole = (cells[:, 1] == 1).float()
        alone = (to_object * whole).sum((1, 2)) / whole.sum((1, 2)) < 0.5
        turned = torch.stack([images.roll(1 + int(i) % 2, 0) for images, i in zip(images, index, strict=True)])
        return torch.where(alone[:, None, None, None] & (masks[:, 1:] > 0), turned, images) / 127.5 - 1


def test_without_the_edges_between_partners_the_hues_of_a_copying_network_disagree():
    found = partner_cut(Painter(64).eval(), "layer", range(64))  # type: ignore[arg-type]
    assert set(found) == {"intact", "partner", "random"}
    assert found["intact"].value > 0.95
    assert found["random"].value > 0.9
    assert found["partner"].value < 0.3
    for agreement in found.values():
        assert agreement.low <= agreement.value <= agreement.high
    assert partner_cut(Painter(64).eval(), "layer", range(8)) == {}  # type: ignore[arg-type]


def test_the_command_writes_causal_maps(generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_snapshot(generator, tmp_path / "snapshot")
    options = ["--seeds", "0-1", "--points", "2", "--causal", "--json"]
    assert sagan("attend", tmp_path / "snapshot", "--out", tmp_path / "out", *options) == 0
    numbers = json.loads(capsys.readouterr().out)["causal"]["attention"]
    assert set(numbers) == {"attention.8x8"}  # not EM attention
    arrays = np.load(tmp_path / "out" / "causal-attention.npz")
    effects = arrays["maps/attention.8x8/effect"]
    assert effects.shape == (2, 1, 2, 4, 4)
    assert numbers["attention.8x8"]["largest_effect"] == pytest.approx(effects.max((3, 4)).mean())
    assert (tmp_path / "out" / "causal-attention.png").is_file()


def test_the_command_says_that_a_mechanism_cannot_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = load_config(None, ["generator.channels=4", "generator.attention={16: em_attention}"])
    save_snapshot(remove_spectral_norm(build_generator(config, 0)), tmp_path / "snapshot")
    assert sagan("attend", tmp_path / "snapshot", "--out", tmp_path / "out", "--seeds", "0", "--causal") == 0
    assert "no map is a softmax over keys" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("causal*"))

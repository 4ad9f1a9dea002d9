"""Gated positional self-attention against its equations, one pair of cells at a time, in float64."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from forms import assert_same_with_gradients, randomized
from torch import Tensor

from sagan.attention import AttentionModule, make_attention

FORMS = [
    pytest.param({}, id="defaults"),
    pytest.param({"heads": 2, "mlp": True}, id="mlp"),
    pytest.param({"heads": 8, "gain": "none"}, id="no-gain"),
    pytest.param({"heads": 1, "mlp": True, "gain": "none"}, id="mlp-no-gain"),
]
SIZES = [(4, 4), (5, 3), (2, 7)]


def make(size: tuple[int, int], channels: int = 16, dtype: torch.dtype = torch.float64, **options) -> AttentionModule:
    """A module with random parameters, gamma not 0."""
    return randomized("gated_positional", channels, size, 0.4, dtype, **options)


def normed(t: Tensor, p: Mapping[str, Tensor], name: str) -> Tensor:
    centered = t - t.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def reference_maps(x: Tensor, p: Mapping[str, Tensor], mutant: str = "") -> dict[str, Tensor]:
    """Gated rows, content and position (B, h, N, N), from all pairs (query i, key j) of cells."""
    heads, (height, width) = len(p["gate"]), x.shape[2:]
    t = normed(x.flatten(2).mT, p, "norm")
    q, k = t @ p["query.weight"].T, t @ p["key.weight"].T
    d = q.shape[2] // heads
    gate = 1 / (1 + (-p["gate"]).exp())
    cells = [(y, c) for y in range(height) for c in range(width)]
    r = torch.tensor(
        [[(b[1] - a[1], b[0] - a[0], (b[1] - a[1]) ** 2 + (b[0] - a[0]) ** 2) for b in cells] for a in cells]
    )
    found: dict[str, list[Tensor]] = {"attention": [], "content": [], "position": []}
    for h in range(heads):
        content = q[..., h * d : h * d + d] @ k[..., h * d : h * d + d].mT / d**0.5  # (B, N, N)
        position = (r.to(x) @ p["position"][h]).expand_as(content)
        gated = (1 - gate[h]) * content.softmax(2) + gate[h] * position.softmax(2)
        if mutant == "gate on the logits":
            gated = ((1 - gate[h]) * content + gate[h] * position).softmax(2)
        found["attention"].append(gated)
        found["content"].append(content.softmax(2))
        found["position"].append(position.softmax(2))
    return {tap: torch.stack(rows, 1) for tap, rows in found.items()}


def reference(x: Tensor, p: Mapping[str, Tensor], mutant: str = "") -> Tensor:
    rows = reference_maps(x, p, mutant)["attention"]
    value = normed(x.flatten(2).mT, p, "norm") @ p["value.weight"].T
    d = value.shape[2] // rows.shape[1]
    each = [rows[:, h] @ value[..., h * d : h * d + d] for h in range(rows.shape[1])]
    before = x.flatten(2).mT
    after = before + torch.cat(each, 2) @ p["out.weight"].T + p["out.bias"]
    if "mlp.1.weight" in p:
        hidden = F.gelu(normed(after, p, "mlp.0") @ p["mlp.1.weight"].T + p["mlp.1.bias"])
        after = after + hidden @ p["mlp.3.weight"].T + p["mlp.3.bias"]
    change = (after - before).mT.reshape(x.shape)
    return x + p.get("gamma", 1.0) * change


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", FORMS)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    """Values and gradients equal the equations over all pairs of cells."""
    module = make((3, 3), **options)  # r comes from the map at hand
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    expected = reference(x, dict(module.named_parameters()))
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


def test_differs_from_a_gate_on_the_logits():
    """Two softmaxes are gated, not the logits of one."""
    module = make((4, 5))
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    wrong = reference(x, dict(module.named_parameters()), "gate on the logits")
    assert (module(x) - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(4, 4), (7, 5)])
@pytest.mark.parametrize("options", FORMS)
def test_attention_rows_equal_the_full_matrices(options: dict, size: tuple[int, int]):
    """Rows of all terms belong to their cell, head and image."""
    module = make(size, **options)
    p = dict(module.named_parameters())
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    points = torch.tensor([[0, 0], [size[0] - 1, 0], [1, size[1] - 1], [2, 3]])
    rows = module.attention_rows(x, points)
    for tap, full in reference_maps(x, p).items():
        expected = full[:, :, points @ torch.tensor([size[1], 1])].unflatten(3, size)
        torch.testing.assert_close(rows[tap], expected, rtol=0, atol=1e-10)
    moved = module.attention_rows(x, torch.stack([points, points.flip(0)]))
    for tap in ("attention", "content", "position"):
        torch.testing.assert_close(moved[tap][1], rows[tap][1].flip(1), rtol=0, atol=1e-12)
    assert torch.equal(rows["gate"], p["gate"].sigmoid().expand(2, 1, 1, 1, -1))


@pytest.mark.parametrize(("heads", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (8, 3), (9, 3), (12, 4), (16, 4)])
def test_every_head_starts_local(heads: int, side: int):
    """Each head starts at its own offset; full grids are in the paper's order."""
    module = make_attention("gated_positional", 720, 9, heads=heads, locality=2.0)
    w = dict(module.named_parameters())["position"].detach()
    c = (side - 1) / 2
    paper = {h1 + side * h2: (2.0 * (h2 - c), 2.0 * (h1 - c), -1.0) for h1 in range(side) for h2 in range(side)}
    found = [tuple(row.tolist()) for row in w / 2]
    assert len(set(found)) == heads
    assert set(found) <= set(paper.values())
    if heads == side**2:
        assert found == [paper[h] for h in range(heads)]
    left_out = set(paper.values()) - set(found)
    assert max(x * x + y * y for x, y, _ in found) <= min([x * x + y * y for x, y, _ in left_out], default=99)


def test_a_sharp_head_reads_its_neighbor():
    """Nine sharp heads read the nine taps of a 3×3 convolution: offsets are key - query."""
    module = make_attention("gated_positional", 18, (5, 6), heads=9, locality=20.0)
    rows = module.attention_rows(torch.randn(1, 18, 5, 6), torch.tensor([[2, 3]]))["position"][0, :, 0]
    cells = [divmod(int(row.argmax()), 6) for row in rows]
    assert cells == [(2 + h % 3 - 1, 3 + h // 3 - 1) for h in range(9)]
    torch.testing.assert_close(rows.amax(dim=(1, 2)), torch.ones(9))


def test_initialization_is_the_papers():
    """Value starts as the identity, g at 1, the other linear layers at N(0, 0.02)."""
    module = make_attention("gated_positional", 64, 8, mlp=True)
    p = dict(module.named_parameters())
    assert torch.equal(p["value.weight"], torch.eye(64))
    assert torch.equal(p["gate"], torch.ones(4))
    for name in ("query", "key", "out", "mlp.1", "mlp.3"):
        assert 0.018 < p[f"{name}.weight"].std() < 0.022
    assert not p["out.bias"].any()
    assert "query.bias" not in p

"""Gated positional self-attention against its equations, one pair of cells at a time."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from forms import assert_equations, draw, layer_normed, randomized
from torch import Tensor

from sagan.attention import make_attention

FORMS = [{}, {"heads": 2, "mlp": True}, {"heads": 8, "gain": "none"}, {"heads": 1, "mlp": True, "gain": "none"}]
make = partial(randomized, "gated_positional", 16, std=0.4)


def reference_maps(x: Tensor, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gated rows, content and position (B, h, N, N), from all pairs (query i, key j) of cells."""
    heads, (height, width) = len(p["gate"]), x.shape[2:]
    t = layer_normed(x.flatten(2).mT, "norm", p)
    queries, keys = ((t @ p[f"{name}.weight"].T).chunk(heads, 2) for name in ("query", "key"))
    gate = 1 / (1 + (-p["gate"]).exp())
    cells = [(y, c) for y in range(height) for c in range(width)]
    r = torch.tensor(
        [[(b[1] - a[1], b[0] - a[0], (b[1] - a[1]) ** 2 + (b[0] - a[0]) ** 2) for b in cells] for a in cells]
    )
    found: dict[str, list[Tensor]] = {"attention": [], "content": [], "position": []}
    for h, (q, k) in enumerate(zip(queries, keys, strict=True)):
        content = q @ k.mT / q.shape[2] ** 0.5  # (B, N, N)
        position = (r.to(x) @ p["position"][h]).expand_as(content)
        gated = (1 - gate[h]) * content.softmax(2) + gate[h] * position.softmax(2)
        found["attention"].append(gated)
        found["content"].append(content.softmax(2))
        found["position"].append(position.softmax(2))
    return {name: torch.stack(rows, 1) for name, rows in found.items()}


def reference(x: Tensor, p: Mapping[str, Tensor], **_) -> tuple[Tensor, dict[str, Tensor]]:
    maps, before = reference_maps(x, p), x.flatten(2).mT
    values = (layer_normed(before, "norm", p) @ p["value.weight"].T).chunk(len(p["gate"]), 2)
    each = [maps["attention"][:, h] @ value for h, value in enumerate(values)]
    after = before + torch.cat(each, 2) @ p["out.weight"].T + p["out.bias"]
    if "mlp.1.weight" in p:
        hidden = F.gelu(layer_normed(after, "mlp.0", p) @ p["mlp.1.weight"].T + p["mlp.1.bias"])
        after = after + hidden @ p["mlp.3.weight"].T + p["mlp.3.bias"]
    maps = {name: rows.unflatten(3, x.shape[2:]) for name, rows in maps.items()}
    gate = p["gate"].sigmoid().expand(len(x), 1, 1, 1, -1)
    return x + p.get("gamma", 1.0) * (after - before).mT.reshape(x.shape), maps | {"gate": gate}


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 7)])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_equals_the_equations(options: dict, size: tuple[int, int]):
    module = make((3, 3), **options)  # r comes from the map at hand
    assert_equations(module, draw(size, channels=16), reference, options)


@pytest.mark.parametrize(("heads", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (8, 3), (9, 3), (12, 4), (16, 4)])
def test_every_head_starts_local(heads: int, side: int):
    """Each head starts at its own offset; full grids are in the paper's order."""
    module = make_attention("gated_positional", 720, 9, heads=heads, locality=2.0)
    c = (side - 1) / 2
    paper = {h1 + side * h2: (2.0 * (h2 - c), 2.0 * (h1 - c), -1.0) for h1 in range(side) for h2 in range(side)}
    found = [tuple(row.tolist()) for row in module.get_parameter("position").detach() / 2]
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
    p = dict(make_attention("gated_positional", 64, 8, mlp=True).named_parameters())
    assert torch.equal(p["value.weight"], torch.eye(64))
    assert torch.equal(p["gate"], torch.ones(4))
    for name in ("query", "key", "out", "mlp.1", "mlp.3"):
        assert 0.018 < p[f"{name}.weight"].std() < 0.022
    assert not p["out.bias"].any()
    assert "query.bias" not in p

"""The maps of every mechanism: recording changes nothing, shapes and sums are documented, rows belong to points."""

from contextlib import nullcontext

import torch
from forms import Sizes, draw, each_form, make
from torch import Tensor

from sagan.attention import KINDS, record_attention


@each_form
def test_recording_changes_no_bit(name: str, options: dict):
    """Recording changes no output, gradient, state or random number."""

    def run(record: bool) -> list[Tensor]:
        module, x = make(name, options).train(), draw()
        torch.manual_seed(3)
        points = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
        with record_attention(module, points) if record else nullcontext({}) as maps:
            y = module(x)
        assert len(maps) == (len(module.map_kinds) if record else 0)
        y.square().sum().backward()
        assert x.grad is not None
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        return [y, x.grad, torch.get_rng_state(), *gradients, *module.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


@each_form
def test_maps_have_the_shape_and_sums_of_their_kind(name: str, options: dict):
    module, x = make(name, options).eval(), draw()
    rows = module.attention_rows(x, torch.tensor([[0, 0], [5, 7], [3, 2]]))
    assert set(rows) == set(module.map_kinds)
    for name_of_map, kind in module.map_kinds.items():
        found, says = rows[name_of_map], KINDS[kind]
        assert (found.ndim, len(found), found.shape[2]) == (5, 2, 3 if says.per_query else 1)
        assert says.spatial or kind == "channel rows" or found.shape[3] == 1
        if says.sums_to_one:
            total = found.sum(says.sums_to_one)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-8)
            assert found.min() >= 0
        if "gate" in kind:
            assert 0 <= found.min() <= found.max() <= 2  # 2: a doubled sigmoid


@each_form
def test_rows_of_some_points_are_those_of_all(name: str, options: dict):
    """Also with different points per image."""
    module, x = make(name, options, (6, 5)).eval(), draw((6, 5))
    every = module.attention_rows(x, torch.cartesian_prod(torch.arange(6), torch.arange(5)))
    points = torch.tensor([[[0, 1], [5, 4]], [[3, 2], [2, 0]]])
    index = points @ torch.tensor([5, 1])  # (B, k)
    for map_name, found in module.attention_rows(x, points).items():
        expected = every[map_name]
        if KINDS[module.map_kinds[map_name]].per_query:
            expected = torch.stack([rows[:, i] for rows, i in zip(expected, index, strict=True)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@each_form
def test_nothing_holds_all_pairs_of_cells(name: str, options: dict):
    """Forward, backward and the maps of a few points need less memory than one weight for each pair of cells."""
    size, cells = (48, 48), 48**2
    module, x = make(name, options, size, torch.float32), draw(size, 1, torch.float32)
    with Sizes() as seen, record_attention(module, torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.0, 0.0]])):
        module(x).sum().backward()
    assert max(seen.seen) <= cells**2 // 4

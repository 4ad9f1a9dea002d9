"""What every mechanism of the table must show: maps beside the one path, of the points asked for, as documented."""

import torch
from forms import draw, each_form, make
from torch import Tensor

from sagan.attention import KINDS, record_attention


@each_form
def test_recording_changes_no_bit(name: str, options: dict):
    """Breaks when listening moves state or random numbers, or changes an output or a gradient."""

    def run(record: bool) -> list[Tensor]:
        module, x = make(name, options).train(), draw()
        torch.manual_seed(3)
        if record:
            with record_attention(module, torch.tensor([[0.5, 0.5], [0.1, 0.9]])) as maps:
                y = module(x)
            assert len(maps) == len(module.taps)
        else:
            y = module(x)
        y.square().sum().backward()
        assert x.grad is not None
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        return [y, x.grad, torch.get_rng_state(), *gradients, *module.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


@each_form
def test_taps_are_documented_and_normalised(name: str, options: dict):
    """Breaks when a map's shape or sum is not what its kind says, or a tap is missing in forward or attention_rows."""
    module, x = make(name, options).eval(), draw()
    points = torch.tensor([[0, 0], [5, 7], [3, 2]])
    rows = module.attention_rows(x, points)
    with record_attention(module, (points + 0.5) / torch.tensor([6.0, 8.0])) as maps:
        module(x)
    recorded = {n.rpartition("/")[2] if len(module.taps) > 1 else "".join(module.taps): m for n, m in maps.items()}
    assert set(rows) == set(recorded) == set(module.taps)
    for tap, kind in module.taps.items():
        found, says = rows[tap], KINDS[kind]
        assert found.ndim == 5
        assert found.shape[0] == 2
        assert found.shape[2] == (3 if says.per_query else 1)
        assert says.spatial or kind == "channel rows" or found.shape[3] == 1
        if says.sums_to_one:
            total = found.sum(says.sums_to_one)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-8)
            assert found.min() >= 0
        if "gate" in kind:
            assert 0 <= found.min() <= found.max() <= 2  # 2: a doubled sigmoid
        torch.testing.assert_close(recorded[tap].weights, found, rtol=0, atol=1e-10)
        assert recorded[tap].kind == kind


@each_form
def test_rows_of_some_points_are_those_of_all(name: str, options: dict):
    """Breaks when a row belongs to another cell, or points (B, k, 2) are read for another sample."""
    module, x = make(name, options, (6, 5)).eval(), draw((6, 5))
    every = module.attention_rows(x, torch.cartesian_prod(torch.arange(6), torch.arange(5)))
    points = torch.tensor([[[0, 1], [5, 4]], [[3, 2], [2, 0]]])
    for tap, found in module.attention_rows(x, points).items():
        if KINDS[module.taps[tap]].per_query:
            for sample in range(2):
                expected = every[tap][sample][:, points[sample, :, 0] * 5 + points[sample, :, 1]]
                torch.testing.assert_close(found[sample], expected, rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(found, every[tap], rtol=0, atol=1e-10)

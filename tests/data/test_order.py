"""The endless order of training images."""

from itertools import pairwise

import numpy as np
import pytest

from sagan.data.dataset import indices


def test_every_epoch_holds_each_image_once():
    """Breaks when an epoch's border is crossed wrongly, such as without a fresh permutation."""
    order = indices(seed=3, size=7, start=0, count=21).reshape(3, 7)
    assert order.dtype == np.int64
    assert [sorted(epoch) for epoch in order.tolist()] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


@pytest.mark.parametrize("cuts", [[5], [7], [3, 14], [1, 2, 20], [6, 8, 13, 15]])
def test_any_cut_gives_the_same_sequence(cuts: list[int]):
    """Breaks when a position depends on where reading began: resume and several processes rest on it."""
    whole = indices(0, 7, 0, 30)
    bounds = [0, *cuts, 30]
    pieces = [indices(0, 7, a, b - a) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_order_is_pinned():
    """Breaks when key, generator or method change: every stopped run would go on with other images."""
    assert indices(0, 10, 0, 10).tolist() == PINNED
    assert indices(1, 10, 0, 10).tolist() != PINNED


def test_callers_cannot_change_the_order():
    """Breaks when a cached permutation itself is handed out."""
    first = indices(5, 6, 0, 6)
    first[:] = 0
    assert sorted(indices(5, 6, 0, 6).tolist()) == list(range(6))


@pytest.mark.parametrize(("size", "start", "count"), [(0, 0, 1), (5, -1, 1), (5, 0, -1)])
def test_nonsense_is_refused(size: int, start: int, count: int):
    """Breaks without the check: a size of 0 would divide by it, a negative start read another epoch."""
    with pytest.raises(ValueError, match="no order"):
        indices(0, size, start, count)


PINNED = [5, 4, 6, 7, 3, 1, 9, 8, 2, 0]

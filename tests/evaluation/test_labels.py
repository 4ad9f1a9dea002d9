"""Labels of samples: balanced at every length, exact over a whole data set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagan.evaluation.result import labels_by_frequency


def test_equal_classes_take_turns():
    """Breaks when sample i of balanced classes is not of class i mod K, as `sagan sample` draws it."""
    assert labels_by_frequency(np.array([50, 50, 50]), 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any))
def test_a_whole_data_set_of_samples_has_exactly_its_counts(counts: list[int]):
    """Breaks when rounding gives a class one sample too many, or an empty class any."""
    labels = labels_by_frequency(np.array(counts), sum(counts))
    assert np.bincount(labels, minlength=len(counts)).tolist() == counts


@pytest.mark.parametrize("count", [1, 7, 100])
def test_a_label_does_not_depend_on_how_many_are_drawn(count: int):
    """Breaks when the labels are dealt out for a given length, for instance sorted or by largest remainders."""
    assert (
        labels_by_frequency(np.array([5, 1, 3]), count).tolist()
        == labels_by_frequency(np.array([5, 1, 3]), 200)[:count].tolist()
    )

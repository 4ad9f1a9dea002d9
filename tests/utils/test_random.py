"""Keyed generators: the same numbers everywhere, different ones for every purpose."""

from itertools import combinations

import numpy as np
import torch

from sagan.utils.random import key, numpy_generator, torch_generator

KEYS = [(0, "a", ()), (1, "a", ()), (0, "b", ()), (0, "a", (0,)), (0, "a", (1,)), (0, "a", (1, 1)), (0, "a", (11,)),
        (10, "a", (1,)), (1, "a", (0, 1)), (2**63, "a", ()), (2**64, "a", ())]  # fmt: skip


def test_the_numbers_stay() -> None:
    assert key(0, "order", 3) == 228291028133782092
    drawn = numpy_generator(0, "shapes", 5).bit_generator.random_raw(2)
    assert drawn.tolist() == [2742166209106578093, 9207765218402039829]
    assert torch_generator(0, "reals", 7).initial_seed() == key(0, "reals", 7)


def test_keys_differ_and_fit() -> None:
    keys = [key(seed, purpose, *index) for seed, purpose, index in KEYS]
    assert len(set(keys)) == len(KEYS)
    assert all(0 <= k < 2**63 for k in keys)


def test_streams_are_repeatable_and_independent() -> None:
    drawn = []
    for seed, purpose, index in KEYS:
        first = numpy_generator(seed, purpose, *index).random(1000)
        np.random.random()  # noqa: NPY002
        torch.rand(1)
        np.testing.assert_array_equal(first, numpy_generator(seed, purpose, *index).random(1000))
        assert torch.equal(*(torch.rand(9, generator=torch_generator(seed, purpose, *index)) for _ in range(2)))
        drawn.append(first)
    for a, b in combinations(drawn, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15

"""Seeds, classes and truncation read from text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagan.config.options import (
    HIGHEST_SEED,
    check_interpolation,
    check_truncation,
    parse_classes,
    parse_seeds,
    select_seeds,
)
from sagan.utils.errors import UserError

NAMES = ("airplane", "bird", "cat", "7")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-63", [*range(64)]), ("7", [7]), ("5-5", [5]), ("9,1,3-5", [9, 1, 3, 4, 5]), (" 1 , 2 ", [1, 2])],
)
def test_seeds(text: str, seeds: list[int]):
    """Breaks when the end of a range is left out, or the order changes."""
    assert list(parse_seeds(text)) == seeds


def test_a_range_costs_no_memory():
    """Breaks when all seeds that are possible become a list: hundreds of megabytes."""
    assert parse_seeds(f"0-{HIGHEST_SEED}") == range(HIGHEST_SEED + 1)


@pytest.mark.parametrize(
    "text",
    ["", "-", "5-", "-5", "3-1", "1,,2", "a", "1-2-3", "1.5", "0-63;", "²", "1,1", "0-5,3", "100000000", "9" * 30],
)
def test_malformed_seeds_are_named(text: str):
    """Breaks when a slip of the pen draws other images, or ends in a traceback."""
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@given(st.text(max_size=12))
def test_any_text_is_seeds_or_a_user_error(text: str):
    """Breaks on any other exception, a negative seed or one seed twice."""
    try:
        seeds = parse_seeds(text)
    except UserError:
        return
    assert min(seeds) >= 0
    assert isinstance(seeds, range) or len(set(seeds)) == len(seeds)


def test_seeds_or_num():
    """Breaks when --num N is not the seeds 0 to N - 1, or both or neither are accepted."""
    assert list(select_seeds(None, 3)) == [0, 1, 2]
    assert list(select_seeds("4-5", None)) == [4, 5]
    for seeds, num in ((None, None), ("1", 1), (None, 0), (None, -2)):
        with pytest.raises(UserError, match="--num"):
            select_seeds(seeds, num)


@pytest.mark.parametrize(
    ("text", "classes"),
    [("0,3", [0, 3]), ("bird", [1]), ("cat,0", [2, 0]), ("1-3", [1, 2, 3]), ("airplane, 2", [0, 2])],
)
def test_classes(text: str, classes: list[int]):
    """Breaks when names and numbers do not mix, or do not keep their order."""
    assert parse_classes(text, NAMES, 4) == classes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4", "0 to 3"),
        ("7", "0 to 3"),  # a number is an index, though a class is called 7
        ("2-9", "0 to 3"),
        ("burd", "did you mean bird"),
        ("zebra", "known: airplane, bird"),
        ("", "no such class"),
        ("1,1", "twice"),
        ("bird,1", "twice"),
        ("-1", "no such class"),
        ("0-x", "expected numbers"),
    ],
)
def test_classes_that_do_not_fit_are_named(text: str, said: str):
    """Breaks when a class list that does not fit is accepted, or the message does not say what would be right."""
    with pytest.raises(UserError, match=said):
        parse_classes(text, NAMES, 4)


def test_a_snapshot_without_classes_or_names():
    """Breaks when --classes is silently ignored by an unconditional snapshot."""
    with pytest.raises(UserError, match="has no classes"):
        parse_classes("0", (), 0)
    assert parse_classes("0,9", (), 10) == [0, 9]
    with pytest.raises(UserError, match="0 to 9"):
        parse_classes("cat", (), 10)


@pytest.mark.parametrize("truncation", [0.0, -0.7, float("nan"), float("inf")])
def test_truncation_is_positive(truncation: float):
    """Breaks when a bound that no normal can be truncated to gets through."""
    with pytest.raises(UserError, match="--truncation"):
        check_truncation(truncation)


def test_interpolation_stands_alone():
    """Breaks when --grid, --npz, --seeds or --num is silently ignored beside --interpolate."""
    nothing = [None] * 4
    check_interpolation((0, 5), 2, nothing)
    for ends, frames, others in (((0, 5), 2, ["0-3", None]), ((-1, 5), 2, nothing), ((0, 5), 1, nothing)):
        with pytest.raises(UserError):
            check_interpolation(ends, frames, others)

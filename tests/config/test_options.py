"""Seeds, classes and truncation parsed from text."""

from pathlib import Path

import pytest

from sagan.config.options import (
    HIGHEST_SEED,
    Place,
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
    assert list(parse_seeds(text)) == seeds


def test_a_range_takes_no_memory():
    assert parse_seeds(f"0-{HIGHEST_SEED}") == range(HIGHEST_SEED + 1)


@pytest.mark.parametrize(
    "text",
    ["", "-", "5-", "-5", "3-1", "1,,2", "a", "1-2-3", "1.5", "0-63;", "²", "٣", "0x10", "1e3", "1,1", "0-5,3",
     "100000000", "9" * 30, "0-49999999,60000000-99999999"],
)  # fmt: skip
def test_wrong_seeds(text: str):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_seeds_or_num():
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
    assert parse_classes(text, NAMES, 4) == classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", "--classes 4"),
        ("7", "--classes 7"),  # a number is an index, though a class is called 7
        ("2-9", "--classes 9"),
        ("burd", "did you mean bird"),
        ("zebra", "known: airplane, bird"),
        ("", "no such class"),
        ("1,1", "twice"),
        ("bird,1", "twice"),
        ("-1", "no such class"),
        ("0-x", "expected numbers"),
    ],
)
def test_wrong_classes(text: str, expected: str):
    with pytest.raises(UserError, match=expected):
        parse_classes(text, NAMES, 4)


def test_a_snapshot_without_classes_or_names():
    with pytest.raises(UserError, match="has no classes"):
        parse_classes("0", (), 0)
    assert parse_classes("0,9", (), 10) == [0, 9]
    with pytest.raises(UserError, match="0 to 9"):
        parse_classes("cat", (), 10)


@pytest.mark.parametrize("truncation", [0.0, -0.7, float("nan"), float("inf")])
def test_truncation_is_positive(truncation: float):
    with pytest.raises(UserError, match="--truncation"):
        check_truncation(truncation)


def test_interpolation():
    nothing = [None] * 4
    check_interpolation((0, 5), 2, nothing)
    for ends, frames, others in (((0, 5), 2, ["0-3", None]), ((-1, 5), 2, nothing), ((0, 5), 1, nothing),
                                 ((0, 100_000_000), 2, nothing)):  # fmt: skip
        with pytest.raises(UserError, match=r"--(interpolate|frames)"):
            check_interpolation(ends, frames, others)


def test_an_unknown_home_is_refused() -> None:
    with pytest.raises(UserError, match="~no-such-user/x: no such user; write the path out"):
        Place().convert("~no-such-user/x", None, None)
    assert Place().convert("~/x", None, None) == Path.home() / "x"

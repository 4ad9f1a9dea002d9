"""Published results: as they were published, and never one of ours."""

import pytest
from written_runs import CIFAR10

from sagan.errors import UserError
from sagan.evaluation.metric_names import DIRECTION
from sagan.published import DATA_SETS, PUBLISHED, notes_on, published_results, recognise


def test_rows_are_those_of_the_sources() -> None:
    """Breaks when a figure is mistyped, or a row gets to another data set."""
    figures = {name: sorted((r.scores["fid"], r.scores["is"]) for r in published_results(name)) for name in DATA_SETS}
    assert figures == {
        "cifar10": [(9.01, 8.83), (9.43, 9.32), (10.35, 8.64)],
        "imagenet128": [
            (12.83, 69.54), (18.28, 51.43), (18.65, 52.52), (22.14, 45.94), (22.96, 42.87), (22.98, 43.15),
            (34.73, 29.85),
        ],
        "tiny-imagenet64": [(51.41, 8.34)],
    }  # fmt: skip
    assert sum(map(len, figures.values())) == len(PUBLISHED)
    assert all(set(row.scores) <= set(DIRECTION) for row in PUBLISHED)
    assert all(row.source and row.protocol for row in PUBLISHED)


def test_notes_say_that_the_protocol_decides() -> None:
    """Breaks when published figures stand there without a warning."""
    assert "14.01" in notes_on("cifar10")[1]
    assert "10.20" in notes_on("cifar10")[1]
    assert all(notes_on(name) for name in DATA_SETS)


def test_an_unknown_data_set_is_refused() -> None:
    """Breaks when a misspelt name shows nothing, or no way out."""
    with pytest.raises(UserError, match="did you mean cifar10"):
        published_results("cifar-10")
    with pytest.raises(UserError, match="known: cifar10, imagenet128, tiny-imagenet64"):
        published_results("runs/mine")


@pytest.mark.parametrize(
    ("names", "resolution", "data"),
    [
        (CIFAR10, 32, "cifar10"),
        ([name.title() for name in reversed(CIFAR10)], 32, "cifar10"),
        (CIFAR10, 64, None),
        (CIFAR10[:9], 32, None),
        ([f"n{i:08d}" for i in range(1000)], 128, "imagenet128"),
        ([f"n{i:08d}" for i in range(1000)], 64, None),
        ([f"n{i:08d}" for i in range(200)], 64, "tiny-imagenet64"),
        ([f"class {i}" for i in range(200)], 64, None),
        ([], 32, None),
    ],
)
def test_data_sets_are_recognised(names: list[str], resolution: int, data: str | None) -> None:
    """Breaks when figures of one data set are shown beside runs on another."""
    assert recognise(names, resolution) == data

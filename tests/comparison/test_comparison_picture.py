"""The picture of a comparison: the right curve, in each run's colour, and samples that nothing blurs."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_runs import BATCH, protocol, scored, write_run, write_sheet

from sagan.comparison.axes import COLOURS
from sagan.comparison.curves import MOST_POINTS, charts, main_metric
from sagan.comparison.picture import WIDTH, comparison_picture, drawable
from sagan.comparison.runs import read_runs
from sagan.comparison.scores import Comparison, compare
from sagan.comparison.sheets import LARGEST, NewestSheet, newest_sheet, panels, panels_in_a_row
from sagan.errors import UserError
from sagan.images import save_png

MARK, OTHER = (1, 203, 7), (250, 5, 111)  # colours that no chart has


def compared(folder: Path, *lines: Sequence[dict[str, Any]], losses: Sequence[float] = ()) -> Comparison:
    runs = [write_run(folder / f"run{i}", scores=found, losses=losses) for i, found in enumerate(lines)]
    return compare(read_runs(runs))


def where(picture: np.ndarray, colour: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero((picture == np.array(colour)).all(2))
    return rows, columns


@pytest.mark.parametrize(
    ("metrics", "main"),
    [
        ([("is", "fid"), ("is",)], "fid"),
        ([("is", "kid"), ("is",)], "is"),
        ([("coherence",), ("is",)], "coherence"),
        ([("recall",), ("is",)], "is"),
        ([(), ()], None),
    ],
)
def test_the_main_metric(metrics: list[tuple[str, ...]], main: str | None, tmp_path: Path) -> None:
    """Breaks when a metric of one run alone is drawn though all share another, or losses though there are scores."""
    lines = [[{"step": 1, **dict.fromkeys(names, 0.5), "protocol": protocol()}] for names in metrics]
    assert main_metric(compared(tmp_path, *lines)) == main


def test_curves_go_over_images_and_keep_protocols_apart(tmp_path: Path) -> None:
    """Breaks when the abscissa is the step, a curve is another run's, or other protocols look alike."""
    old = [{"step": 1000, "fid": 5.0}]
    (chart,) = charts(compared(tmp_path, scored(30.0, 5.0, 6.0), scored(4.0, num=7), old, [], scored(7.0)))
    assert [(curve.run, curve.apart) for curve in chart.curves] == [(0, False), (1, True), (2, True), (4, False)]
    assert chart.curves[0].points == ((1000.0 * BATCH, 30.0), (2000.0 * BATCH, 5.0), (3000.0 * BATCH, 6.0))
    assert chart.curves[0].best == (2000.0 * BATCH, 5.0)
    assert chart.curves[1].best is None
    assert [curve.label for curve in chart.curves[:3]] == [
        "best 5.00 at step 2,000", "4.00, measured otherwise", "5.00, no protocol known",
    ]  # fmt: skip
    more = [*scored(9.0, 8.0, num=7), *scored(3.0)]
    (mixed,) = charts(compared(tmp_path / "mixed", more, scored(4.0)))
    assert [[value for _, value in curve.points] for curve in mixed.curves] == [[3.0], [4.0]]
    assert chart.logarithmic
    assert "10,000 generated images" in chart.subtitle


def test_losses_are_drawn_where_nothing_is_scored(tmp_path: Path) -> None:
    """Breaks when a new run has no curve, or averaging changes the level of a loss."""
    values = list(np.linspace(2, 0, 10 * MOST_POINTS))
    first, second = charts(compared(tmp_path, [], [], losses=values))
    assert [first.title, second.title] == ["discriminator loss", "generator loss"]
    (curve, _) = first.curves
    assert len(curve.points) == MOST_POINTS
    assert np.isclose(np.mean([value for _, value in curve.points]), 1)
    assert curve.points[0][0] < curve.points[-1][0] <= 1000 * MOST_POINTS * BATCH
    assert second.curves[0].points[0][1] < 0


def test_samples_are_whole_pixels_under_the_curves(tmp_path: Path) -> None:
    """Breaks when sheets are blurred, scaled by a fraction, exchanged, not the newest, or have unequal rows."""
    found = compared(tmp_path, scored(30.0, 9.0), scored(20.0, 7.0))
    for run, step, colour, rows in ((0, 100, (9, 9, 9), 8), (0, 2000, MARK, 8), (1, 2000, OTHER, 3)):
        write_sheet(found.runs[run].folder, step, colour, rows)
    picture = comparison_picture(found)
    assert picture.shape[1] == WIDTH
    assert picture.dtype == np.uint8
    (rows, columns), (other_rows, other_columns) = where(picture, MARK), where(picture, OTHER)
    middle = columns.max() + 10
    assert 800 < middle < other_columns.min()
    assert rows.min() == other_rows.min() > 700
    side = 96  # three times as large, eight beside each other
    for found_rows in (rows, other_rows):
        assert len(found_rows) == 3 * 8 * side**2
    assert set(np.diff(np.unique(rows))) == {1, 3}  # a border of two pixels and nothing else between them
    for number, half in ((0, np.s_[:, :middle]), (1, np.s_[:, middle:])):
        colour = [int(COLOURS[number][i : i + 2], 16) for i in (1, 3, 5)]
        assert len(where(picture[rows.min() - 110 : rows.min()][half], colour)[0]) > 700  # the line over the panel
        assert len(where(picture[: rows.min() - 110], colour)[0]) > 1000  # the curve
    assert (picture == comparison_picture(found)).all()


def test_sheets_of_other_sizes_fit_beside_each_other() -> None:
    """Breaks when panels differ in size, are wider than their room, or are cut to nothing."""

    def images(rows: int, columns: int, size: int) -> NewestSheet:
        return NewestSheet(np.zeros((rows, columns, size, size, 3), np.uint8), 1)

    small, large = images(10, 8, 32), images(16, 6, 128)
    for width in (400, 620, 960):
        first, second, none = panels([small, large, None], width)
        assert first is not None
        assert second is not None
        assert none is None
        assert first.shape == second.shape
        assert first.shape[1] <= width
        assert (first.shape[0] - 2) // (LARGEST + 2) == 10
    assert panels([None, None], 400) == [None, None]
    assert panels([images(4, 4, 256)], 200)[0] is not None
    assert panels_in_a_row([small] * 9, 1800, 4) == 4
    assert panels_in_a_row([large] * 9, 1800, 4) == 3
    assert panels_in_a_row([images(4, 8, 256)] * 9, 1800, 4) == 1
    assert panels_in_a_row([images(4, 1, 256)] * 9, 1800, 4) == 4


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_sheet_is_taken_apart_as_it_was_laid_out(size: int, tmp_path: Path) -> None:
    """Breaks when the figure of attention is taken for a sheet, or tiles are cut beside their borders."""
    run = write_run(tmp_path / "run", f"data.resolution={size}")
    write_sheet(run, 100, MARK, rows=3, columns=5, size=size)
    save_png(run / "samples" / "00000200-nearest.png", np.zeros((9, 9, 3), np.uint8))
    sheet = newest_sheet(read_runs([run])[0])
    assert sheet is not None
    assert sheet.step == 100
    assert sheet.images.shape == (3, 5, size, size, 3)
    assert (sheet.images == np.array(MARK)).all()


def test_a_file_that_is_no_sheet_is_named(tmp_path: Path) -> None:
    """Breaks when a strange or damaged picture ends in a traceback, or is drawn."""
    run = write_run(tmp_path / "run")
    write_sheet(run, 100, MARK, size=48)
    with pytest.raises(UserError, match=r"00000100.png: not a sheet of 32 px samples, it has 402x202 pixels; "):
        comparison_picture(compare(read_runs([run])))
    (run / "samples" / "00000100.png").write_bytes(b"PNG")
    with pytest.raises(UserError, match=r"00000100.png: not readable as an image"):
        comparison_picture(compare(read_runs([run])))


def test_something_is_drawn_of_all_that_is_there(tmp_path: Path) -> None:
    """Breaks when runs without scores, logs or sheets make it fail, or an empty page is drawn."""
    found = compared(tmp_path, [], [])
    with pytest.raises(UserError, match="--out: nothing to draw"):
        comparison_picture(found)
    write_sheet(found.runs[1].folder, 100, MARK)
    only_sheets = comparison_picture(found)
    only_curves = comparison_picture(compared(tmp_path / "b", scored(3.0), [{"fid": 3.0, "protocol": protocol()}]))
    assert only_sheets.shape[1] == only_curves.shape[1] == WIDTH
    assert len(where(only_sheets, MARK)[0])


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    """Breaks when a name is read as mathematics or has letters that the font lacks: warnings, or an error."""
    names = ["a$b$c", "_hidden", r"$\frac$", "漢字 \x07", "$", "^_{", "n" * 200, *map(str, range(16))]
    folders = [write_run(tmp_path / name, scores=scored(3.0)) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison_picture(compare(read_runs(folders)))
    assert drawable("é漢") == "é?"

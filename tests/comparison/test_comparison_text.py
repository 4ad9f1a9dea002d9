"""The comparison as text: every figure in its place, nothing ranked that was measured otherwise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from written_runs import protocol, scored, write_run

from sagan.comparison.columns import Column, render, shortened
from sagan.comparison.history import history_text
from sagan.comparison.runs import read_runs
from sagan.comparison.scores import Comparison, compare
from sagan.comparison.table import table_text


def compared(folder: Path, **runs: Sequence[dict[str, Any]]) -> Comparison:
    return compare(read_runs([write_run(folder / name, scores=lines) for name, lines in runs.items()]))


def test_table(tmp_path: Path) -> None:
    """Breaks when a cell, a mark or a note is wrong or missing, or lines end in blanks."""
    half = "training.batch_size=32"
    folders = [
        write_run(tmp_path / "good", half, scores=scored(20.0, 8.0, 10.0)),
        write_run(tmp_path / "fast", half, "optim.generator.lr=0.5", scores=scored(12.0, 11.0)),
        write_run(tmp_path / "few", half, scores=scored(9.0, 9.0, num=1000, labels="uniform")),
        write_run(tmp_path / "old", half, scores=[{"step": 1000, "num": 300, "fid": 12.0}]),
        write_run(tmp_path / "none", half),
    ]
    text = table_text(compare(read_runs(folders)), 120)
    assert (
        text
        == """\
                         optim.
             images  generator.      fid ↓            fid ↓
run   steps    seen          lr     newest             best
----  -----  ------  ----------  ---------  ---------------
good  3,000  96,000      0.0001   10.00      8.00 @ 2,000 *
fast  2,000  64,000         0.5   11.00     11.00 @ 2,000
few   2,000  64,000      0.0001   (9.00) a              -
old   1,000  32,000      0.0001  (12.00) b              -
none      0       0      0.0001       -                 -

*  the best of its column
() not compared with the others of its column
a  measured otherwise: num 1,000, not 10,000; labels uniform, not reference
b  no protocol stands beside it (an older version wrote it): comparable with nothing
fid: 10,000 generated images, 32x32, averaged weights, running batch-norm statistics, labels: reference, against cifar10
   (50,000 images), inception
not scored: none"""
    )


def test_a_score_of_an_earlier_step_says_so(tmp_path: Path) -> None:
    """Breaks when a score looks as if it were of the run's last step, or of a step that nobody wrote down."""
    runs = [
        write_run(tmp_path / "a", scores=scored(20.0), losses=[1.0] * 15),
        write_run(tmp_path / "b", scores=[{"fid": 21.0, "protocol": protocol()}]),
    ]
    text = table_text(compare(read_runs(runs)), 120)
    assert "20.00 @ 1,000  20.00 @ 1,000 *" in text
    assert "21.00 @ ?      21.00 @ ?\n" in text


def test_two_ways_of_measuring_get_two_columns(tmp_path: Path) -> None:
    """Breaks when scores in training and the final ones share a column, or their stars do."""
    lines = {
        name: [*scored(2 * fid, fid, num=1000), {"step": 2000, "fid": other, "protocol": protocol()}]
        for name, fid, other in (("a", 7.0, 5.0), ("b", 6.0, 5.5))
    }
    text = table_text(compared(tmp_path, **lines, c=scored(7.0, num=1000)), 120)
    assert [line.split() for line in text.splitlines()[3:6]] == [
        ["a", "2,000", "128,000", "7.00", "7.00", "@", "2,000", "5.00", "5.00", "@", "2,000", "*"],
        ["b", "2,000", "128,000", "6.00", "6.00", "@", "2,000", "*", "5.50", "5.50", "@", "2,000"],
        ["c", "1,000", "64,000", "7.00", "7.00", "@", "1,000", "-", "-"],
    ]
    assert "fid [1] ↓" in text
    assert "fid [1]: 1,000 generated images" in text
    assert "fid [2]: as [1], but num 10,000, not 1,000" in text


def test_what_has_no_column_is_told_below(tmp_path: Path) -> None:
    """Breaks when a score disappears because its run has another one in the column."""
    text = table_text(compared(tmp_path, a=[*scored(7.0), *scored(3.0, num=7)], b=scored(8.0)), 120)
    assert "a: also fid 3.00 @ 1,000; measured otherwise: num 7, not 10,000" in " ".join(text.split())


def test_warnings_stand_below_once(tmp_path: Path) -> None:
    """Breaks when what makes a score less than it seems is not told."""
    lines = [line | {"warnings": ["FID is biased"]} for line in scored(7.0)]
    assert table_text(compared(tmp_path, a=lines, b=lines, c=scored(8.0)), 120).count("FID is biased") == 1
    assert "a, b: warning: FID is biased" in table_text(compared(tmp_path / "again", a=lines, b=lines), 120)


def test_history(tmp_path: Path) -> None:
    """Breaks when a step, a protocol or the best of a run is lost."""
    lines = [*scored(20.0, 8.0, 10.0), *scored(3.0, num=7), {"step": 4000, "num": 9, "is": 5.0}]
    assert (
        history_text(compared(tmp_path, run=lines), 120)
        == """\
run: 4,000 steps, 256,000 images seen

        images
 step     seen  fid [1] ↓  fid [2] ↓      is ↑
-----  -------  ---------  ---------  --------
1,000   64,000    20.00         3.00      -
2,000  128,000     8.00 *          -      -
3,000  192,000    10.00            -      -
4,000  256,000        -            -  (5.00) a

*  the best of its column
() not compared with the others of its column
a  no protocol stands beside it (an older version wrote it): comparable with nothing
fid [1]: 10,000 generated images, 32x32, averaged weights, running batch-norm statistics, labels: reference, against
   cifar10 (50,000 images), inception
fid [2]: as [1], but num 7, not 10,000"""
    )
    assert "*" not in history_text(compared(tmp_path, flat=scored(3.0, 3.0)), 120)
    assert history_text(compared(tmp_path, new=[]), 120) == "new: 0 steps, 0 images seen; no score yet"


def test_wide_tables_break_into_blocks_that_name_the_runs() -> None:
    """Breaks when a line is wider than the terminal, a block lacks the names, or newest and best are parted."""
    names = Column("run", ("one", "漢字"), words=True)
    pairs = [(Column(f"new\n{i}", ("1", "2")), Column("best", ("3333", "4"), beside=True)) for i in range(6)]
    text = render([names, *(column for pair in pairs for column in pair)], 42)
    blocks = text.split("\n\n")
    assert len(blocks) == 2
    assert all(len(line) <= 42 for line in text.splitlines())
    for block in blocks:
        lines = block.splitlines()
        assert [line[:4].strip() for line in lines[1:]] == ["run", "----", "one", "漢字"]
        assert lines[3].count("1") == lines[3].count("3333") == 3
        assert lines[4].index("2") == lines[3].index("1") - 2  # two letters of the name are four characters wide
    assert render([names, Column("x" * 50, ("1", "2"))], 40).count("\n\n") == 0


def test_shortened() -> None:
    """Breaks when a text is longer than asked, or loses its end."""
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert shortened("abcdefghijk", 9) == "abcd…hijk"

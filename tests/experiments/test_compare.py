"""`sagan compare`: reading run folders, grouping scores by protocol, tables, JSON and the picture."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import sagan
from written_runs import BATCH, CIFAR10, protocol, scored, write_grid, write_run

from sagan.evaluation.registry import DIRECTION
from sagan.experiments.charts import DOTS, MOST_POINTS, comparison_figure, drawable, main_metric, rendered
from sagan.experiments.compare import BASELINES, comparison_text, recognize
from sagan.experiments.runs import Comparison, compare, differing_settings, read_runs, unique_names
from sagan.experiments.table import Column, shortened, text_table
from sagan.utils.errors import UserError
from sagan.utils.images import read_png

MARK = (1, 203, 7)  # a color that no chart has


def comparison(folder: Path, *lines: Sequence[dict[str, Any]], only: str | None = None, **more: Any) -> Comparison:
    """Of runs with these lines in their metrics.jsonl."""
    runs = [write_run(folder / f"run{i}", scores=each, **more) for i, each in enumerate(lines)]
    return compare(read_runs(runs), only)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def groups(found: Comparison, metric: str) -> list[int | None]:
    """The protocol groups of each run's scores, run by run."""
    columns = found.metrics[metric]
    return [column.group for run in range(len(found.runs)) for column in columns if run in column.scores]


# --- run folders


def test_equal_names_get_their_parents(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "a/other", "deep/other/run")]
    assert unique_names(folders) == ["a/x/run", "b/x/run", "other", "other/run"]


def test_the_step_of_a_run_is_the_last_in_any_file(tmp_path: Path) -> None:
    logged = write_run(tmp_path / "logged", losses=[1.0, 2.0])
    evaluated = write_run(tmp_path / "evaluated", scores=scored(30.0, 20.0), losses=[1.0])
    saved = write_run(tmp_path / "saved", "training.batch_size=32", losses=[1.0])
    for name in ("snapshots/00000500", "checkpoints/00000700", "checkpoints/.partial-00000900"):
        (saved / name).mkdir(parents=True)
    runs = read_runs([logged, evaluated, saved, write_run(tmp_path / "new")])
    assert [run.step for run in runs] == [200, 2000, 700, 0]
    assert [run.images(run.step) for run in runs] == [200 * BATCH, 2000 * BATCH, 700 * 32, 0]


def test_settings_in_which_runs_differ(tmp_path: Path) -> None:
    runs = read_runs([
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", "optim.generator.lr=0.5"),
        write_run(tmp_path / "c", "seed=3", "generator.attention={}", content="cd"),
    ])  # fmt: skip
    assert differing_settings(runs) == {
        "optim.generator.lr": [1e-4, 0.5, 1e-4],
        "seed": [0, 0, 3],
        "generator.attention.16.name": ["self_attention", "self_attention", None],
        "generator.attention.16.place": ["after", "after", None],
        "data.content_hash": ["ab" * 32, "ab" * 32, "cd" * 32],
    }
    text = comparison_text(compare(runs), 200)
    assert "attention." in text
    assert "place" not in text  # it is there or not with its module


def test_a_score_without_a_step_has_that_of_its_protocol(tmp_path: Path) -> None:
    lines = [{"fid": 9, "protocol": protocol(checkpoint_step=700)}, {"num": 100, "is": 3.0, "kid": None}]
    (run,) = read_runs([write_run(tmp_path / "run", scores=lines)])
    assert [(line.scores, line.step) for line in run.metrics] == [({"fid": 9.0}, 700), ({"is": 3.0}, None)]


@pytest.mark.parametrize(
    "line",
    ['{"step": 5, "fi', "[1]", '{"step": 5, "fid": "good"}', '{"step": 5, "kid": NaN}', '{"step": 5, "is": true}',
     '{"fid": 1' + 400 * "0" + "}", '{"step": -5, "fid": 3}', '{"step": 5.5, "fid": 3}',
     '{"step": 5, "protocol": "fast"}', '{"step": 5, "warnings": "few"}',
     '{"fid": 3, "protocol": {"checkpoint_step": "x"}}', "[" * 100_000],
    ids=lambda line: line[:30],
)  # fmt: skip
def test_a_damaged_score_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scores=scored(30.0, 20.0))
    append(run / "metrics.jsonl", f'\n{line}\n{{"step": 6, "fid": 3}}\n')
    with pytest.raises(UserError, match=r"^[^\n]*metrics\.jsonl: line 4 is damaged \([^\n]*$"):
        read_runs([run])


def test_a_log_that_is_being_written_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", losses=[1.0, float("nan"), 3.0])
    append(run / "log.jsonl", '{"step": 400')
    (record,) = read_runs([run])
    assert record.step == 300
    assert record.logged("d_loss") == [(100, 1.0), (300, 3.0)]
    append(run / "log.jsonl", "\n")
    with pytest.raises(UserError, match=r"log.jsonl: line 4 is damaged"):
        read_runs([run])


# --- grouping and ranking


@pytest.mark.parametrize("metric", DIRECTION)
def test_best_is_the_lowest_or_highest_and_the_earliest(metric: str, tmp_path: Path) -> None:
    found = comparison(tmp_path, scored(0.4, 0.2, 0.6, 0.2, 0.6, 0.5, metric=metric), scored(0.3, metric=metric))
    (column,) = found.columns
    assert (best := column.best(0)) is not None
    assert (best.value, best.step) == ((0.2, 2000) if DIRECTION[metric] < 0 else (0.6, 3000))
    assert column.scores[0][-1].value == 0.5
    assert column.leaders() == {0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"seeds": "5-9"}, [0, 0]), ({"versions": {}}, [0, 0]), ({"checkpoint_step": 9}, [0, 0]),
     ({"kid": "50 subsets"}, [0, 0]), ({"lpips": "vgg"}, [0, 0]), ({"num": 9}, [0, 1]), ({"labels": "uniform"}, [0, 1]),
     ({"reference_hash": "00"}, [0, 1]), ({"backbone_sha256": "00"}, [0, 1]), ({"truncation": 0.5}, [0, 1])],
    ids=str,
)  # fmt: skip
def test_what_decides_a_fid(change: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    found = comparison(tmp_path, scored(3.0), scored(4.0, **change))
    assert groups(found, "fid") == expected
    assert found.columns[0].leaders() == ({0} if expected == [0, 0] else set())


def test_scores_without_a_protocol_are_compared_with_nothing(tmp_path: Path) -> None:
    old = [{"step": 600, "num": 300, "coherence": 0.1}, {"step": 1200, "num": 300, "coherence": 0.2}]
    found = comparison(tmp_path, old, old, scored(0.3, metric="coherence"))
    assert groups(found, "coherence") == [None, None, 0]
    known, unknown = found.columns
    assert unknown.best(0) is None
    assert known.leaders() == unknown.leaders() == set()


def test_columns_start_with_the_protocol_of_most_runs(tmp_path: Path) -> None:
    lines = [[*scored(9.0, fid, num=1000), *scored(fid - 2, num=50000)] for fid in (7.0, 6.0)]
    found = comparison(tmp_path, *lines, scored(1.0, num=7))
    assert [(column.group, column.leaders()) for column in found.columns] == [(0, {1}), (1, {1}), (2, set())]
    assert [group["num"] for group in found.groups] == [1000, 50000, 7]
    assert not {"seeds", "versions", "checkpoint_step"} & set(found.groups[0])


def test_leaders_can_be_equal_but_not_all(tmp_path: Path) -> None:
    assert comparison(tmp_path, scored(3.0, 5.0), scored(4.0, 3.0), scored(3.5)).columns[0].leaders() == {0, 1}
    assert comparison(tmp_path / "alone", scored(3.0)).columns[0].leaders() == set()
    assert comparison(tmp_path / "equal", scored(3.0), scored(3.0)).columns[0].leaders() == set()


def test_the_latest_evaluation_of_a_step_counts(tmp_path: Path) -> None:
    late = {"fid": 1.0, "protocol": protocol()}
    found = comparison(tmp_path, [*scored(5.0, 4.0, 3.0), *scored(6.0, 7.0), late], scored(5.0))
    points = found.columns[0].scores[0]
    assert [(p.step, p.value) for p in points] == [(None, 1.0), (1000, 6.0), (2000, 7.0), (3000, 3.0)]


# --- text and JSON


def test_table_of_several_runs(tmp_path: Path) -> None:
    half = "training.batch_size=32"
    folders = [
        write_run(tmp_path / "good", half, scores=scored(20.0, 8.0, 10.0)),
        write_run(tmp_path / "fast", half, "optim.generator.lr=0.5", scores=scored(12.0, 11.0)),
        write_run(tmp_path / "few", half, scores=scored(9.0, num=1000, labels="uniform")),
        write_run(tmp_path / "old", half, scores=[{"step": 1000, "num": 300, "fid": 12.0}], losses=[1.0] * 15),
        write_run(tmp_path / "none", half),
    ]
    lines = comparison_text(compare(read_runs(folders)), 200).splitlines()
    assert [line.split() for line in lines[4:9]] == [
        ["good", "3,000", "96,000", "0.0001", "10.00", *["8.00", "@", "2,000", "*"], "-", "-", "-"],
        ["fast", "2,000", "64,000", "0.5", "11.00", *["11.00", "@", "2,000"], "-", "-", "-"],
        ["few", "1,000", "32,000", "0.0001", "-", "-", "9.00", *["9.00", "@", "1,000"], "-"],
        ["old", "1,500", "48,000", "0.0001", "-", "-", "-", "-", *["12.00", "@", "1,000"]],
        ["none", "0", "0", "0.0001", "-", "-", "-", "-", "-"],
    ]
    notes = " ".join("\n".join(lines[9:]).split())
    assert "fid [1]: 10,000 generated images, 32x32, averaged weights, running batch-norm statistics" in notes
    assert "fid [2]: as [1], but num 1,000, not 10,000; labels uniform, not reference" in notes
    assert "fid [?]: no protocol was recorded" in notes
    assert notes.endswith("not scored: none")


def test_history_of_one_run(tmp_path: Path) -> None:
    lines = [*scored(20.0, 8.0, 10.0), *scored(3.0, num=7), {"step": 4000, "num": 9, "is": 5.0}]
    text = comparison_text(comparison(tmp_path, lines), 120)
    assert text.startswith("run0: 4,000 steps, 256,000 images seen\n")
    assert [line.split() for line in text.splitlines()[5:9]] == [
        ["1,000", "64,000", "20.00", "3.00", "-"],
        ["2,000", "128,000", "8.00", "*", "-", "-"],
        ["3,000", "192,000", "10.00", "-", "-"],
        ["4,000", "256,000", "-", "-", "5.00"],
    ]
    assert comparison_text(comparison(tmp_path / "new", []), 120) == "run0: 0 steps, 0 images seen; no score yet"


def test_warnings_are_listed_once(tmp_path: Path) -> None:
    lines = [line | {"warnings": ["FID is biased"]} for line in scored(7.0)]
    text = comparison_text(comparison(tmp_path, lines, lines, scored(8.0)), 120)
    assert "run0, run1: warning: FID is biased" in text
    assert text.count("FID is biased") == 1


def test_wide_tables_break_into_blocks_that_name_the_runs() -> None:
    names = Column("run", ("one", "漢字"), words=True)
    text = text_table([names, *(Column(f"new\n{i}", ("1", "3333")) for i in range(12))], 42)
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    for block in blocks:
        assert [line.split()[0] for line in block.splitlines()[-2:]] == ["one", "漢字"]
        assert all(len(line) <= 42 for line in block.splitlines())
    assert shortened("abcdefghijk", 10) == "abcde…hijk"


def test_json_and_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_run(tmp_path / n, f"seed={i}", scores=scored(30.0, 9.0 + i)) for i, n in enumerate("ab"))
    old = write_run(tmp_path / "old", scores=[*scored(7.0, num=5), {"step": 50, "num": 5, "fid": 8.0}])
    assert sagan("compare", a, b, old, "--baselines", "cifar10", "--json", "--out", tmp_path / "new" / "c.png") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == f"{tmp_path / 'new' / 'c.png'}\n"
    assert read_png(tmp_path / "new" / "c.png").ndim == 3
    assert found["runs"][1] == {
        "name": "b", "folder": str(b), "step": 2000, "images": 128000, "settings": {"seed": 1},
        "scores": {
            "fid": {"newest": 10.0, "newest_step": 2000, "best": 10.0, "best_step": 2000, "protocol_group": 0}
        },
    }  # fmt: skip
    fid = found["runs"][2]["scores"]["fid"]
    assert (fid["newest"], fid["protocol_group"]) == (7.0, 1)
    assert fid["others"] == [
        {"newest": 8.0, "newest_step": 50, "best": None, "best_step": None, "protocol_group": None}
    ]
    assert [group["group"] for group in found["protocol_groups"]] == [0, 1]
    assert found["protocol_groups"][1]["protocol"]["num"] == 5
    assert [row["scores"]["fid"] for row in found["published"]] == [9.43, 10.35, 9.01]
    assert "14.01" in " ".join(found["published_notes"])
    assert sagan("compare", a, b, "--published", "auto", "--metric", "fid") == 0
    table, _, baselines = capsys.readouterr().out.partition("baselines for cifar10")
    assert "9.00 @ 2,000 *" in table
    assert "9.01" not in table
    assert "StudioGAN SNGAN" in baselines
    assert "*" not in baselines


def test_baselines_are_those_of_the_sources() -> None:
    figures = {
        data: sorted((row.scores["fid"], row.scores["is"]) for row in BASELINES if row.data == data)
        for data in ("cifar10", "imagenet128", "tiny-imagenet64")
    }
    assert figures == {
        "cifar10": [(9.01, 8.83), (9.43, 9.32), (10.35, 8.64)],
        "imagenet128": [
            (12.83, 69.54), (18.28, 51.43), (18.65, 52.52), (22.14, 45.94), (22.96, 42.87), (22.98, 43.15),
            (34.73, 29.85),
        ],
        "tiny-imagenet64": [(51.41, 8.34)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "resolution", "data"),
    [
        ([name.title() for name in reversed(CIFAR10)], 32, "cifar10"),
        (CIFAR10, 64, None),
        (CIFAR10[:9], 32, None),
        ([f"n{i:08d}" for i in range(1000)], 128, "imagenet128"),
        ([f"n{i:08d}" for i in range(200)], 64, "tiny-imagenet64"),
        ([f"class {i}" for i in range(200)], 64, None),
        (None, 32, None),
    ],
)
def test_data_sets_with_baselines_are_recognized(names: list[str], resolution: int, data: str | None) -> None:
    assert recognize(names, resolution) == data


# --- the picture


@pytest.mark.parametrize(
    ("metrics", "main"),
    [([("is", "fid"), ("is",)], "fid"), ([("is", "kid"), ("is",)], "is"), ([("coherence",), ("is",)], "coherence"),
     ([("recall",), ("is",)], "is"), ([(), ()], None)],
)  # fmt: skip
def test_the_main_metric(metrics: list[tuple[str, ...]], main: str | None, tmp_path: Path) -> None:
    lines = [[{"step": 1, **dict.fromkeys(names, 0.5), "protocol": protocol()}] for names in metrics]
    assert main_metric(comparison(tmp_path, *lines)) == main


def test_curves_go_over_images_and_mark_other_protocols(tmp_path: Path) -> None:
    old = [{"step": 1000, "fid": 5.0}]
    found = comparison(tmp_path, scored(30.0, 5.0, 6.0), scored(4.0, num=7), old, [], scored(7.0))
    (axes,) = comparison_figure(found).axes
    assert axes.get_yscale() == "log"
    curves = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert list(curves) == [
        "run0\nbest 5.00 at step 2,000", "run1\n4.00, other protocol", "run2\n5.00, no protocol recorded",
        "run4\nbest 7.00 at step 1,000",
    ]  # fmt: skip
    first, *_ = curves.values()
    assert first.get_xydata().tolist() == [[1000 * BATCH, 30], [2000 * BATCH, 5], [3000 * BATCH, 6]]
    dotted = (0, [each * first.get_linewidth() for each in DOTS[1]])
    assert [line._dash_pattern == dotted for line in curves.values()] == [False, True, True, False]
    marks = [line.get_xydata().tolist() for line in axes.lines if line not in curves.values()]
    assert marks == [[[2000 * BATCH, 5]], [[1000 * BATCH, 7]]]


def test_losses_are_drawn_if_nothing_is_scored(tmp_path: Path) -> None:
    values = list(np.linspace(2, 0, 10 * MOST_POINTS))
    first, second = comparison_figure(comparison(tmp_path, [], [], losses=values)).axes
    assert first.get_title("left").startswith("discriminator loss\n")
    assert second.get_title("left").startswith("generator loss\n")
    curve = first.lines[0].get_ydata()
    assert len(curve) == MOST_POINTS
    assert np.isclose(curve.mean(), 1)
    assert second.lines[0].get_ydata()[0] < 0


def test_the_picture_has_the_newest_samples(tmp_path: Path) -> None:
    found = comparison(tmp_path, scored(30.0, 9.0), scored(20.0, 7.0), [])
    write_grid(found.runs[0].folder, 100, (9, 9, 9))
    write_grid(found.runs[0].folder, 2000, MARK)
    write_grid(found.runs[1].folder, 2000, (250, 5, 111), rows=3)
    picture = rendered(comparison_figure(found))
    assert picture.dtype == np.uint8
    marked = (picture == np.array(MARK)).all(2)
    assert marked.sum() > 50_000
    assert np.nonzero(marked)[1].max() < picture.shape[1] / 2
    assert (picture == 9).all(2).sum() < 1000  # the older grid; letters have a few such pixels


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    names = ["a$b$c", "_hidden", r"$\frac$", "漢字 \x07", "$", "^_{", "n" * 200, *map(str, range(4))]
    folders = [write_run(tmp_path / name, scores=scored(3.0)) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rendered(comparison_figure(compare(read_runs(folders))))
    assert drawable("é漢", 9) == "é?"

"""What a comparison reads of run folders, and what it says to those that are none."""

from pathlib import Path

import pytest
from written_runs import BATCH, protocol, scored, write_run

from sagan.comparison.runs import differing_settings, read_losses, read_runs, unique_names
from sagan.errors import UserError


def refusal(*folders: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_runs(folders)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_equal_names_get_their_parents(tmp_path: Path) -> None:
    """Breaks when two runs have one name, or a name is longer than it must be."""
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "a/other", "deep/other/run")]
    assert unique_names(folders) == ["a/x/run", "b/x/run", "other", "other/run"]
    assert unique_names([Path("/"), Path("/run")]) == ["/", "run"]


def test_a_run_is_what_its_files_say(tmp_path: Path) -> None:
    """Breaks when the step is taken from one file alone, images are not steps times batch, or names get lost."""
    logged = write_run(tmp_path / "logged", losses=[1.0, 2.0])
    measured = write_run(tmp_path / "measured", scores=scored(30.0, 20.0), losses=[1.0])
    saved = write_run(tmp_path / "saved", "training.batch_size=32", losses=[1.0])
    (saved / "snapshots" / "00000500").mkdir(parents=True)
    (saved / "checkpoints" / "00000700").mkdir(parents=True)
    (saved / "checkpoints" / ".partial-00000900").mkdir()
    new = write_run(tmp_path / "new")
    runs = read_runs([logged, measured, saved, new])
    assert [run.step for run in runs] == [200, 2000, 700, 0]
    assert [run.images(run.step) for run in runs] == [200 * BATCH, 2000 * BATCH, 700 * 32, 0]
    assert runs[0].class_names[0] == "airplane"
    assert [score.value for score in runs[1].scores] == [30.0, 20.0]


def test_settings_in_which_runs_differ(tmp_path: Path) -> None:
    """Breaks when a setting of the third run is missed, equal ones are shown, or other data go unnoticed."""
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
    assert differing_settings(runs[:1]) == {}


def test_a_score_without_a_step_has_that_of_its_protocol(tmp_path: Path) -> None:
    """Breaks when a later `sagan evaluate`, whose step stands in the protocol, loses it."""
    lines = [{"fid": 9, "protocol": protocol(checkpoint_step=700)}, {"num": 100, "is": 3.0, "kid": None}]
    (run,) = read_runs([write_run(tmp_path / "run", scores=lines)])
    assert [(s.metric, s.value, s.step) for s in run.scores] == [("fid", 9.0, 700), ("is", 3.0, None)]
    assert run.scores[1].protocol is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 5, "fi', "not JSON, or cut short"),
        ("[1]", "not an object"),
        ('{"step": 5, "fid": "good"}', "fid is 'good', expected a finite number"),
        ('{"step": 5, "kid": NaN}', "kid is nan"),
        ('{"step": 5, "is": true}', "is is True"),
        ('{"step": -5, "fid": 3}', "its step is -5"),
        ('{"step": 5.5, "fid": 3}', "its step is 5.5"),
        ('{"step": 5, "fid": 3, "protocol": "fast"}', "its protocol is no group"),
        ('{"step": 5, "fid": 3, "warnings": "few"}', "its warnings are no list"),
        ("[" * 100_000, "not JSON"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", '\n{"step": 6, "fid": 3}\n'], ids=["cut", "last", "between"])
def test_a_damaged_score_is_named_with_its_line(line: str, said: str, end: str, tmp_path: Path) -> None:
    """Breaks when a damaged line is passed over, or its number is not that of an editor."""
    run = write_run(tmp_path / "run", scores=scored(30.0, 20.0))
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n" + line + end)
    message = refusal(run)
    assert message.startswith(f"{run / 'metrics.jsonl'}: line 4 is damaged (")
    assert said in message
    assert message.endswith("; repair or remove that line")


def test_a_log_that_is_being_written_is_read(tmp_path: Path) -> None:
    """Breaks when a comparison fails while a run trains, or takes half a number for a whole one."""
    run = write_run(tmp_path / "run", losses=[1.0, float("nan"), 3.0])
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 400')
    (record,) = read_runs([run])
    assert record.step == 300
    assert read_losses(record) == {"d_loss": [(100, 1.0), (300, 3.0)], "g_loss": [(100, -1.0), (300, -3.0)]}
    with open(run / "log.jsonl", "a") as file:
        file.write("\n")
    assert "log.jsonl: line 4 is damaged" in refusal(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """Breaks when a folder that is no run is taken for one, or the message does not say what is wrong."""
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "gone").endswith("gone: no such folder; name the folder of a run")
    assert "is a file; name the folder of a run" in refusal(tmp_path / "file")
    assert "not a run, it has no config.yaml; " in refusal(tmp_path / "empty")
    assert refusal(run, tmp_path / "empty" / ".." / "run").endswith("is given twice")
    (run / "run.json").write_text("[]")
    assert "run.json: not the record of a run" in refusal(run)
    (run / "run.json").unlink()
    assert read_runs([run])[0].class_names == ()
    (run / "metrics.jsonl").write_bytes(b"\xff\n")
    assert "metrics.jsonl: not readable" in refusal(run)
    (run / "config.yaml").write_text("sede: 1")
    assert "config.yaml: unknown setting sede; did you mean seed?" in refusal(run)

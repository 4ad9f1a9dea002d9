"""`sagan compare`: what it prints, what it writes, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from written_runs import protocol, scored, write_run, write_sheet

from sagan.commands.compare import compare_command
from sagan.errors import UserError
from sagan.images import read_png

WITHOUT_TORCH = """
import sys
from pathlib import Path
from sagan.commands.compare import compare_command
folder = Path(sys.argv[1])
compare_command([folder / "a", folder / "b"], "auto", None, folder / "c.png", False)
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on CIFAR-10 that can be compared."""
    folders = [
        write_run(tmp_path / "a", scores=scored(30.0, 9.0)),
        write_run(tmp_path / "b", "seed=1", scores=scored(20.0, 12.0)),
    ]
    for folder in folders:
        write_sheet(folder, 2000, (1, 203, 7))
    return folders


def refusal(runs: list[Path], published: str | None = None, metric: str | None = None, out: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        compare_command(runs, published, metric, out, False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table_and_picture(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the picture is not written whole at its place, or is written without being asked for."""
    compare_command(runs, None, None, None, False)
    text = capsys.readouterr().out
    assert text.startswith("            ")
    assert "9.00 @ 2,000 *" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    out = tmp_path / "new" / "both.PNG"
    compare_command(runs, None, "fid", out, False)
    shown = capsys.readouterr()
    assert shown.out == f"{text}{out}\n"
    assert shown.err == ""
    assert read_png(out).shape[1] == 2000
    assert [path.name for path in out.parent.iterdir()] == ["both.PNG"]


def test_json(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when stdout is not one object, or a figure stands under another name, run or group."""
    old = write_run(tmp_path / "old", scores=[*scored(7.0, num=5), {"step": 50, "num": 5, "fid": 8.0}])
    compare_command([*runs, old], "cifar10", None, tmp_path / "c.png", True)
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == f"{tmp_path / 'c.png'}\n"
    assert [run["name"] for run in found["runs"]] == ["a", "b", "old"]
    assert found["runs"][1] == {
        "name": "b", "folder": str(runs[1]), "step": 2000, "images": 128000, "settings": {"seed": 1},
        "scores": {
            "fid": {"newest": 12.0, "newest_step": 2000, "best": 12.0, "best_step": 2000, "protocol_group": 0}
        },
    }  # fmt: skip
    fid = found["runs"][2]["scores"]["fid"]
    assert (fid["newest"], fid["protocol_group"]) == (7.0, 1)
    assert fid["others"] == [
        {"newest": 8.0, "newest_step": 50, "best": None, "best_step": None, "protocol_group": None}
    ]
    assert [group["group"] for group in found["protocol_groups"]] == [0, 1]
    assert found["protocol_groups"][1]["metrics"] == ["fid"]
    assert found["protocol_groups"][1]["protocol"]["num"] == 5
    assert [row["scores"]["fid"] for row in found["published"]] == [9.43, 10.35, 9.01]
    assert "14.01" in " ".join(found["published_notes"])
    compare_command(runs, None, None, None, True)
    assert "published" not in json.loads(capsys.readouterr().out)


def test_published_results_stand_apart(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a published figure is ranked, or gets into the table of the runs."""
    compare_command(runs, "auto", None, None, False)
    table, _, published = capsys.readouterr().out.partition("published results on cifar10")
    assert "9.00 @ 2,000 *" in table
    assert "9.01" not in table
    assert "StudioGAN SNGAN" in published
    assert "*" not in published
    assert "no ranking" in published


def test_published_results_of_data_that_are_not_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when figures of another data set are shown unasked, or cannot be asked for."""
    run = write_run(tmp_path / "run", class_names=["cat", "dog"])
    assert "--published: " in refusal([run], "auto")
    assert "name one of cifar10, imagenet128" in refusal([run], "auto")
    compare_command([run], "imagenet128", None, None, False)
    assert "SAGAN paper, attention at 64" in capsys.readouterr().out


def test_one_metric_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when --metric shows others, or one that no run has."""
    lines = [{"step": 1, "fid": 3.0, "is": 5.0, "protocol": protocol()}]
    runs = [write_run(tmp_path / name, scores=lines) for name in "ab"]
    compare_command(runs, None, "is", None, False)
    text = capsys.readouterr().out
    assert "is ↑" in text
    assert "fid" not in text
    assert refusal(runs, metric="kid") == "--metric kid: none of these runs was measured so; they have fid, is"
    assert "they have no score yet" in refusal([write_run(tmp_path / "new")], metric="kid")


def test_what_is_refused_before_a_run_is_read(tmp_path: Path) -> None:
    """Breaks when a misspelt option is found after minutes, or its message names no way out."""
    nowhere = [tmp_path / "nowhere"]
    assert refusal([]).startswith("no run is named; ")
    assert refusal(nowhere, metric="fdi").endswith("unknown metric; did you mean fid?")
    assert "known: fid, kid, is, " in refusal(nowhere, metric="quality")
    assert "did you mean cifar10?" in refusal(nowhere, published="cifar")
    assert "give a name that ends in .png" in refusal(nowhere, out=tmp_path / "a.jpg")
    (tmp_path / "folder.png").mkdir()
    assert "put --published behind the runs" in refusal(nowhere, published=str(tmp_path))
    assert "is a folder; name a .png file" in refusal(nowhere, out=tmp_path / "folder.png")
    assert "no such folder" in refusal(nowhere)


def test_no_torch(runs: list[Path]) -> None:
    """Breaks when reading files needs seconds of imports, or a display."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, runs[0].parent], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when training writes other names, sheets or lines than a comparison reads."""
    from command_line import sagan
    from tiny import TINY

    config = TINY | {
        "data": {"source": str(tmp_path / "data")},
        "training": TINY["training"] | {"steps": 4, "batch_size": 4},
        "evaluate": {"every": 2, "num": 8, "metrics": ["coherence"]},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert sagan("prepare", "shapes:16", "--out", tmp_path / "data") == 0
    assert sagan("train", tmp_path / "c.yaml", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    compare_command([tmp_path / "run"], None, None, tmp_path / "c.png", True)
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["step"], run["images"]) == (4, 16)
    assert run["scores"]["coherence"]["newest_step"] == 4
    assert run["scores"]["coherence"]["protocol_group"] == 0
    assert np.ptp(read_png(tmp_path / "c.png")) > 0

"""The folder of a run: created once, resumed only by what gives the same results, locked by one process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import files_of, tiny_config

from sagan.config.load import load_config
from sagan.runs.run_dir import final_snapshot, lock_run, open_run
from sagan.utils.errors import UserError
from sagan.utils.io import read_json

ABOUT = {"content_hash": "ab" * 32, "images": 3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint."""
    open_run(tmp_path / "run", tiny_config(), ABOUT)
    (tmp_path / "run" / "checkpoints" / "00000001").mkdir(parents=True)
    return tmp_path / "run"


def refusal(run: Path, *overrides: str, about: dict | None = None) -> str:
    """The message for other settings, which must not get into the run."""
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        open_run(run, tiny_config(*overrides), about or ABOUT)
    assert (run / "config.yaml").read_bytes() == before
    return str(caught.value)


def test_a_new_folder_gets_config_and_origin(run: Path) -> None:
    assert load_config(run / "config.yaml") == tiny_config()
    assert read_json(run / "run.json") == ABOUT


def test_the_same_settings_open_it_again(run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    open_run(run, tiny_config(), ABOUT)
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("override", [
    "optim.generator.lr=0.5", "seed=1", "data.flip=true", "data.resolution=64", "data.resize=squash",
    "generator.channels=4", "generator.attention={}", "generator.attention.8.pool=false", "optim.d_steps=2",
    "loss.r1=1.0", "augment.policy=[color]", "ema.half_life=10", "training.batch_size=16", "training.precision=bf16",
    "training.steps=5",
])  # fmt: skip
def test_settings_that_change_results_are_refused(run: Path, override: str) -> None:
    message = refusal(run, override)
    assert len(message.splitlines()) <= 5
    assert str(run) in message
    assert override.partition("=")[0].removesuffix("={}") in message


def test_the_difference_is_shown(run: Path) -> None:
    assert "  optim.generator.lr: 0.001 in the run, 0.5 now" in refusal(run, "optim.generator.lr=0.5").splitlines()
    many = refusal(run, "data.resolution=64", "seed=1", "data.flip=true", "loss.r1=1", "optim.d_steps=2")
    assert len(many.splitlines()) <= 5
    assert "more" in many
    assert max(map(len, many.splitlines()[1:])) < 120


@pytest.mark.parametrize("override", [
    "training.steps=7", "training.log_every=3", "training.sample_every=3", "training.checkpoint_every=3",
    "training.keep_checkpoints=9", "training.trackers=[tensorboard]", "training.device=auto", "evaluate.every=5",
    "data.source=elsewhere",
])  # fmt: skip
def test_harmless_settings_may_change(run: Path, override: str) -> None:
    open_run(run, tiny_config(override), ABOUT)
    assert load_config(run / "config.yaml") == tiny_config(override)


def test_more_steps_are_refused_where_a_schedule_depends_on_them(tmp_path: Path) -> None:
    open_run(tmp_path / "run", tiny_config("optim.decay=linear"), ABOUT)
    (tmp_path / "run" / "checkpoints").mkdir()
    message = refusal(tmp_path / "run", "optim.decay=linear", "training.steps=7")
    assert "training.steps: 6 in the run, 7 now" in message


def test_other_data_is_refused(run: Path) -> None:
    message = refusal(run, about={**ABOUT, "content_hash": "cd" * 32})
    assert "abababababab" in message
    assert "cdcdcdcdcdcd" in message


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"holiday\.jpg"):
        open_run(tmp_path, tiny_config(), ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_what_else_lies_in_a_run_is_no_obstacle(run: Path) -> None:
    (run / "notes.txt").write_text("looks good")
    (run / "sampled").mkdir()
    open_run(run, tiny_config(), ABOUT)


@pytest.mark.parametrize("left", [["run.json"], ["run.json", "config.yaml"], ["run.json", "config.yaml", "log.jsonl"]])
def test_a_run_without_a_checkpoint_binds_nobody(tmp_path: Path, left: list[str]) -> None:
    open_run(tmp_path, tiny_config(), ABOUT)
    (tmp_path / "log.jsonl").write_text("")
    for name in {"run.json", "config.yaml", "log.jsonl"} - set(left):
        (tmp_path / name).unlink()
    open_run(tmp_path, tiny_config("seed=1"), {"content_hash": "cd" * 32})
    assert load_config(tmp_path / "config.yaml") == tiny_config("seed=1")
    assert read_json(tmp_path / "run.json") == {"content_hash": "cd" * 32}


def test_a_finished_run_without_checkpoints_still_binds(run: Path) -> None:
    (run / "checkpoints" / "00000001").rmdir()
    (run / "checkpoints").rmdir()
    (run / "snapshots" / "00000006").mkdir(parents=True)
    assert "seed" in refusal(run, "seed=1")


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
@pytest.mark.parametrize("content", ["{", "[]", None])
def test_damaged_records_are_named(run: Path, name: str, content: str | None) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=name):
        open_run(run, tiny_config(), ABOUT)


def test_final_snapshot(run: Path) -> None:
    last = run / "snapshots" / "00000006"
    assert final_snapshot(run, 6) is None
    last.mkdir(parents=True)
    assert final_snapshot(run, 6) is None
    (run / "checkpoints" / "00000006").mkdir()
    assert final_snapshot(run, 6) == last
    assert final_snapshot(run, 7) is None
    shutil.rmtree(run / "checkpoints")
    assert final_snapshot(run, 6) == last


def test_the_weights_that_a_run_began_from_are_its_own(tmp_path: Path) -> None:
    folder, origin = tmp_path / "run", "training.init_from=runs/first"
    open_run(folder, tiny_config(origin), ABOUT)
    (folder / "checkpoints").mkdir()
    message = refusal(folder, "training.init_from=runs/second")
    assert "  training.init_from: runs/first in the run, runs/second now" in message.splitlines()
    for same in ([origin], []):
        open_run(folder, tiny_config(*same), ABOUT)
        assert load_config(folder / "config.yaml").training.init_from == "runs/first"


def test_what_a_kill_left_is_removed(run: Path) -> None:
    kept = {"log.jsonl", "samples/00000001.png", "samples/.hidden", "checkpoints/00000001/state.json"}
    left = {".partial-1-log.jsonl", "samples/.partial-2-00000002.png",
            "checkpoints/.partial-3-00000002/state.json", "snapshots/.partial-4-00000002/config.json"}  # fmt: skip
    for name in kept | left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    open_run(run, tiny_config(), ABOUT)
    assert files_of(run).keys() == kept | {"config.yaml", "run.json"}
    assert not [*run.rglob(".partial-*")]


def test_one_process_at_a_time(run: Path) -> None:
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from sagan.runs.run_dir import lock_run\n"
               "with lock_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()", str(run)]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), lock_run(run):
            pass
        other.kill()
    with lock_run(run), pytest.raises(UserError, match="another process"), lock_run(run):
        pass
    with lock_run(run):
        pass


LOCKED = """
import sys, time
from pathlib import Path
from sagan.utils.errors import UserError
from sagan.runs.run_dir import lock_run
run, own = Path(sys.argv[1]), Path(sys.argv[1]) / "own"
print("ready", flush=True)
while not run.with_name("go").exists():
    pass
for _ in range(300):
    try:
        with lock_run(run):
            own.touch(exist_ok=False)  # FileExistsError where two hold the lock
            time.sleep(0.0005)
            own.unlink()
            print("held", flush=True)
    except UserError:
        print("refused", flush=True)
"""


def test_a_new_folder_is_locked_by_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKED, str(tmp_path / "new")]
    processes = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, outputs, strict=True)] == [(0, "")] * 3
    assert sum(out.count("held") for out, _ in outputs) > 0


def test_a_folder_in_which_nothing_began_goes_again(tmp_path: Path) -> None:
    with lock_run(tmp_path / "new"):
        pass
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "empty").mkdir()
    with lock_run(tmp_path / "empty"):
        pass
    with lock_run(tmp_path / "used"):
        (tmp_path / "used" / "log.jsonl").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "used"}

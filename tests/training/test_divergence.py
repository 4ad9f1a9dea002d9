"""Divergence: every kind provoked in a real run, what the run then does, and that nothing is lost."""

from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import sagan
from processes import train_in_two
from safetensors.torch import load_file
from tiny import files_of, lines_of, log_of, tiny_config, tiny_run, train_tiny, write_config
from torch import Tensor, nn

from sagan.config.load import Config
from sagan.config.schema import DivergenceSettings
from sagan.data.dataset import PreparedData
from sagan.models.generator import Generator
from sagan.runs.checkpoint import Progress, list_checkpoints, newest_whole_checkpoint
from sagan.training.batches import Batches
from sagan.training.divergence import Divergence, in_discriminator, in_samples, in_state
from sagan.training.logging import RunLog
from sagan.training.rollback import recover
from sagan.training.state import Run, resume
from sagan.training.trainer import train
from sagan.utils.errors import UserError
from sagan.utils.io import read_json

pytestmark = pytest.mark.usefixtures("alone")

OFTEN = ("training.checkpoint_every=1", "training.log_every=1")
BACK = ("divergence.action=rollback", *OFTEN)
SCORED = ("evaluate.every=2", "evaluate.num=24", "evaluate.metrics=[coherence]", "evaluate.best=coherence",
          "divergence.worse.coherence=2")  # fmt: skip


class Picture(nn.Module):
    """Generates real images, or gray."""

    def __init__(self, data: PreparedData, like: Generator, good: bool):
        super().__init__()
        self.z_dim, self.num_classes, self.resolution = like.z_dim, like.num_classes, like.resolution
        self.class_names, self.good = like.class_names, good
        self.images = nn.Parameter(torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2) / 127.5 - 1, False)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        chosen = (z.sum(1) * 1e4).long() % len(self.images)
        return self.images[chosen] * self.good

    def snapshot_config(self) -> dict[str, bool]:
        return {"good": self.good}


def scripted(run: Run, data: PreparedData, bad: Collection[tuple[int, int]]) -> None:
    """The run's own evaluator gets real images, and gray ones at the (step, rollbacks) of `bad`."""
    evaluate = run.evaluate
    assert evaluate is not None

    def hook(folder: Path, progress: Progress, generator: Generator, *others: Any):
        good = (progress.step, progress.rollbacks) not in bad
        return evaluate(folder, progress, Picture(data, generator, good), *others)  # type: ignore[arg-type]

    run.evaluate = hook


class Killed(Exception):
    """In place of a kill."""


def go(folder: Path, config: Config, data: PreparedData, bad: Collection[tuple[int, int]] = (),
       change: Callable[[Run], None] = lambda run: None, kill: Callable[[Run, int], bool] = lambda run, step: False,
       ) -> Run:  # fmt: skip
    """Train or resume, `change`d before, `kill`ed while a step is logged."""
    run = tiny_run(folder, config, data)
    resume(run)
    change(run)
    if bad:
        scripted(run, data, bad)

    def track(values: dict[str, float], step: int) -> None:
        if kill(run, step):
            raise Killed

    log = RunLog(folder, run.progress.step, config.training.steps, config.training.batch_size, track)
    train(run, log)
    return run


def stopped(folder: Path, config: Config, data: PreparedData, match: str, **options) -> dict:
    """What stopped.json says of a run that must stop with `match`; its checkpoints must be what they were."""
    with pytest.raises(UserError, match=match) as caught:
        go(folder, config, data, **options)
    assert "stopped, the last checkpoint is from an earlier step" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    found = read_json(folder / "stopped.json")
    assert found["reason"] in str(caught.value)
    for path in folder.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    for path in folder.glob("*.json*"):
        assert "NaN" not in path.read_text(), path
    return found


LARGE = ("optim.generator.lr=3e38",)
STEEP = ("loss.r1=1e30",)


@pytest.mark.parametrize(
    ("settings", "every", "reason"),
    [
        (LARGE, (3, 9), "^g_sigma/.* is (nan|inf)"),
        (LARGE, (3, 3), "^generator .* is not finite, or too large to be squared"),
        (STEEP, (3, 9), "d_gradient_norm is inf"),
        (STEEP, (9, 3), r"discriminator_optimizer .*exp_avg_sq is not finite, or too large to be squared"),
    ],
    ids=["weights-logged", "weights-saved", "gradients-logged", "gradients-saved"],
)
def test_numbers_that_explode_are_noticed(
    tmp_path: Path, data: PreparedData, settings: tuple[str, ...], every: tuple[int, int], reason: str
) -> None:
    train_tiny(tmp_path, tiny_config("training.steps=2"), data)
    before = files_of(tmp_path / "checkpoints")
    config = tiny_config("training.steps=9", f"training.log_every={every[0]}", f"training.checkpoint_every={every[1]}",
                         *settings)  # fmt: skip
    found = stopped(tmp_path, config, data, f"{reason} at step 3")
    assert (found["kind"], found["step"], found["since"]) == ("not_finite", 3, 3)
    assert files_of(tmp_path / "checkpoints") == before


@pytest.mark.parametrize("network", ["generator", "discriminator", "ema"])
def test_no_broken_weight_is_saved(tmp_path: Path, data: PreparedData, network: str) -> None:
    def spoil(run: Run) -> None:
        assert in_state(1, run.gan) is None
        list(getattr(run.gan, network).parameters())[-1].data.view(-1)[0] = torch.inf

    config = tiny_config("training.steps=3", "training.log_every=3", "training.checkpoint_every=1", "ema.start=0",
                         "ema.decay=0.9")  # fmt: skip
    assert stopped(tmp_path, config, data, "at step 1; stopped", change=spoil)["kind"] == "not_finite"
    assert list_checkpoints(tmp_path) == []


def test_a_saturated_discriminator_is_noticed(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=60", *OFTEN, "optim.generator.lr=1e-9", "optim.discriminator.lr=0.02",
                         "divergence.saturation=0.1", "divergence.patience=4")  # fmt: skip
    found = stopped(tmp_path, config, data, "the discriminator is saturated since step")
    assert found["step"] == found["since"] + 4
    assert found["figures"]["share"] <= 0.1
    losses = {line["step"]: line["d_loss"] for line in log_of(tmp_path)}
    assert max(losses) == found["step"]
    assert all(losses[step] <= 0.2 for step in range(found["since"], found["step"] + 1))
    assert losses[found["since"] - 1] > 0.2


def test_saturation_is_of_the_adversarial_loss() -> None:
    config = tiny_config("divergence.saturation=0.1", "divergence.patience=2", "loss.name=non_saturating", "loss.r1=2")
    values = {"d_loss": 10.1, "d_adversarial": 0.1, "r1": 5.0, "real_logits": 9.0, "fake_logits": -9.0}
    progress, divergence = in_discriminator(config, Progress(7), values)
    assert (progress.saturated_since, divergence) == (7, None)
    assert in_discriminator(config, replace(progress, step=9), values)[1] is not None
    better, divergence = in_discriminator(config, replace(progress, step=9), values | {"d_adversarial": 0.2})
    assert (better.saturated_since, divergence) == (None, None)
    assert in_discriminator(tiny_config(), Progress(7), values) == (Progress(7), None)


def silence(run: Run) -> None:
    """Make the generator ignore z: its last normalization gives 0."""
    for network in (run.gan.generator, run.gan.ema):
        network.norm.weight.data.zero_()
        network.norm.bias.data.zero_()


def test_samples_that_are_all_alike_are_noticed(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=2", "training.sample_every=2", "training.samples_per_class=4",
                         "divergence.spread=0.01")  # fmt: skip
    found = stopped(tmp_path / "mute", config, data, "samples of one class are all alike", change=silence)
    assert (found["kind"], found["step"]) == ("spread", 2)
    assert found["figures"]["spread"] < 0.01
    assert not (tmp_path / "mute" / "snapshots").exists()
    assert (tmp_path / "mute" / "samples" / "00000002.png").is_file()
    go(tmp_path / "sound", config, data)


def test_classes_that_differ_do_not_hide_it() -> None:
    rows = np.arange(4, dtype=np.uint8)[:, None, None, None, None] * 60
    settings = DivergenceSettings(spread=0.01)
    alike = np.broadcast_to(rows, (4, 6, 8, 8, 3))
    assert in_samples(settings, 1, alike) is not None
    noisy = alike + 51 * (np.arange(6, dtype=np.uint8) % 2)[:, None, None, None]
    assert in_samples(settings, 1, noisy) is None
    found = in_samples(settings.model_copy(update={"spread": 0.11}), 1, noisy)
    assert found is not None
    assert found.figures["spread"] == pytest.approx(0.1)


def test_a_score_far_behind_its_best_is_noticed(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=8", *SCORED)
    found = stopped(tmp_path, config, data, "coherence is 0, more than 2 times worse than its best", bad={(4, 0)})
    assert (found["kind"], found["step"], found["figures"]["coherence"]) == ("worse", 4, 0)
    assert found["figures"]["best"] > 0.2
    (best,) = list_checkpoints(tmp_path)
    assert read_json(best / "state.json")["best_step"] == 2
    assert list(read_json(best / "state.json")["records"]) == ["coherence"]


def test_a_roll_back_goes_to_the_best_and_keeps_what_it_leaves(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=6", *BACK, *SCORED, "training.sample_every=1", "training.snapshot_every=1",
                         "divergence.rate=0.25", "training.keep_checkpoints=9")  # fmt: skip
    run = go(tmp_path, config, data, {(4, 0)})
    assert (run.progress.step, run.progress.rollbacks, run.progress.rate) == (6, 1, 0.25)
    (line,) = lines_of(tmp_path / "rollbacks.jsonl")
    assert (line["number"], line["kind"], line["step"], line["to"], line["rate"]) == (1, "worse", 4, 2, 0.25)
    left = tmp_path / "abandoned" / "1"
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log_of(left)] == [3, 4]
    assert [line["step"] for line in lines_of(left / "metrics.jsonl")] == [4]
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [2, 4, 6]
    assert {path.name for path in (left / "samples").iterdir()} >= {"00000003.png", "00000004.png"}
    assert [path.name for path in (left / "snapshots").iterdir()] == ["00000003"]
    assert [path.name for path in list_checkpoints(left)] == ["00000003"]
    assert log_of(left)[0]["d_loss"] != log_of(tmp_path)[2]["d_loss"]
    states = {path.name: read_json(path / "state.json") for path in list_checkpoints(tmp_path)}
    assert states["00000001"]["rollbacks"] == 0
    for name, rate in (("generator_optimizer", 1e-3), ("discriminator_optimizer", 2e-3)):
        assert states["00000003"]["param_groups"][name][0]["lr"] == rate / 4


def test_a_run_that_was_rolled_back_resumes_bit_for_bit(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=7", *BACK, *SCORED, "optim.d_steps=2", "data.flip=true",
                         "training.checkpoint_every=2", "augment.policy=[color]", "optim.decay=linear")  # fmt: skip
    bad = {(4, 0), (6, 1)}
    run = go(tmp_path / "whole", config, data, bad)
    assert (run.progress.rollbacks, run.progress.rate) == (2, 0.25)
    kills = [(0, 3), (1, 3), (1, 5), (2, 3), (2, 6)]
    for rollbacks, step in kills:
        with pytest.raises(Killed):
            go(tmp_path / "killed", config, data, bad,
               kill=lambda run, now, at=(rollbacks, step): (run.progress.rollbacks, now) == at)  # fmt: skip
    go(tmp_path / "killed", config, data, bad)
    whole, killed = (
        {name: content for name, content in files_of(tmp_path / run).items() if not name.endswith("log.jsonl")}
        for run in ("whole", "killed")
    )
    assert "abandoned/2/metrics.jsonl" in whole
    assert whole == killed
    for part in (".", "abandoned/1", "abandoned/2"):
        assert log_of(tmp_path / "whole" / part) == log_of(tmp_path / "killed" / part)


def test_a_kill_in_a_roll_back_is_no_harm(tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("training.steps=6", *BACK, *SCORED, "training.keep_checkpoints=9")
    whole = go(tmp_path / "whole", config, data, {(4, 0)})
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: _raise() if path.name == "samples" else real(path, pattern))
    with pytest.raises(Killed):
        go(tmp_path / "killed", config, data, {(4, 0)})
    monkeypatch.undo()
    assert newest_whole_checkpoint(tmp_path / "killed")[0] == tmp_path / "killed" / "checkpoints" / "00000003"
    killed = go(tmp_path / "killed", config, data, {(4, 0)})
    assert asdict(whole.progress) == asdict(killed.progress)
    for part in ("checkpoints", "snapshots", "abandoned/1/samples"):
        assert files_of(tmp_path / "whole" / part) == files_of(tmp_path / "killed" / part)


def _raise() -> None:
    raise Killed


def test_only_so_many_roll_backs(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=9", *BACK, "training.sample_every=3", "training.samples_per_class=2",
                         "divergence.spread=0.9", "divergence.times=2")  # fmt: skip
    found = stopped(tmp_path, config, data, "at step 3 after 2 rollbacks; stopped")
    assert found["rollbacks"] == 2
    lines = lines_of(tmp_path / "rollbacks.jsonl")
    assert [(line["number"], line["to"], line["rate"]) for line in lines] == [(1, 2, 0.5), (2, 2, 0.25)]
    assert newest_whole_checkpoint(tmp_path)[0] == tmp_path / "checkpoints" / "00000002"


def test_where_a_run_goes_back_to(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=5", *BACK, "training.keep_checkpoints=9")
    go(tmp_path, config, data)
    (tmp_path / "checkpoints" / "00000003" / "average.safetensors").write_bytes(b"damaged")
    for since, expected in ((5, 4), (4, 2), (1, 1)):
        run = tiny_run(tmp_path, config, data)
        resume(run)
        recover(run, RunLog(tmp_path, 5, 5, 8, lambda values, step: None), Divergence("saturation", "it", {}, 5, since))
        assert run.progress.step == expected
        assert read_json(tmp_path / "checkpoints" / f"{expected:08d}" / "state.json")["rollbacks"] > 0
    with pytest.raises(UserError, match="no intact checkpoint is left to return to; stopped"):
        go(tmp_path / "none", tiny_config("divergence.action=rollback", "loss.r1=1e30"), data)


def test_draws_after_a_roll_back_are_others(data: PreparedData) -> None:
    plain = Batches(3, 16, 1, 0, 1, torch.device("cpu"), 5, 4, ("color",), True, True)
    seen = [replace(plain, rollbacks=count) for count in range(3)]
    assert len({tuple(b.latents("generator", 2)[0].z.flatten().tolist()) for b in seen}) == 3
    assert len({b.fetch(data)(1)[0].tobytes() for b in seen}) == 3
    raw = plain.fetch(data)(0)
    assert len({tuple(b.reals(0, raw)[0].augmentation.flatten().tolist()) for b in seen}) == 3
    assert len({b.reals(0, raw)[0].images.numpy().tobytes() for b in seen}) == 3


@pytest.mark.parametrize("setting", ["divergence.worse.fid=0.5", "divergence.rate=0"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        tiny_config(setting)


def test_the_command_stops_and_starts_again(
    tmp_path: Path, data: PreparedData, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", data, divergence={"spread": 0.9},
                          training={"steps": 3, "sample_every": 2, "samples_per_class": 2})  # fmt: skip
    command = ["train", config, "--out", tmp_path / "run"]
    for count in (0, 1):
        assert sagan(*command) == 2
        assert "all alike" in capfd.readouterr().err
        assert len(list(tmp_path.glob("run/abandoned/stopped-*.json"))) == count
        assert read_json(tmp_path / "run" / "stopped.json")["step"] == 2
    assert sagan(*command, "--set", "divergence.spread=null") == 0
    assert not (tmp_path / "run" / "stopped.json").exists()
    assert len(list(tmp_path.glob("run/abandoned/stopped-*.json"))) == 2


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, divergence={"spread": 0.9, "action": "rollback", "times": 2},
                          training={"steps": 9, "sample_every": 3, "checkpoint_every": 2, "samples_per_class": 2},
                          )  # fmt: skip
    said = train_in_two(config, tmp_path / "run", succeeds=False)
    assert said.count("rolled back to step 2") == 2
    assert said.count("at step 3 after 2 rollbacks; stopped") == 1
    assert "sagan/" not in said  # no traceback of ours
    assert read_json(tmp_path / "run" / "stopped.json")["rollbacks"] == 2

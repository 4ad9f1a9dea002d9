"""Whole runs on tiny networks: resumed bit for bit, and equal to the plain algorithm."""

import copy
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import is_aim_available, is_compiled_module
from safetensors.torch import load_file
from standin import register_standin
from tiny import files_of, lines_of, log_of, one_process, tiny_config, tiny_run, train_tiny

from sagan.config.load import replaced
from sagan.data.dataset import PreparedData
from sagan.evaluation.features import CHUNK
from sagan.models.generator import Generator
from sagan.runs.checkpoint import Progress, list_checkpoints, mark_checkpoint, newest_whole_checkpoint
from sagan.runs.run_dir import final_snapshot
from sagan.training.ema import decay_at, update_ema
from sagan.training.logging import RunLog
from sagan.training.state import launcher_conflicts, make_accelerator, resolve_precision, resume
from sagan.training.step import discriminator_step, generator_step
from sagan.training.trainer import resolved, save, steps_to_agreement, train
from sagan.utils.errors import UserError
from sagan.utils.io import read_json

RICH = ("optim.d_steps=2", "optim.accumulation=2", "data.flip=true", "augment.policy=[color, translation, cutout]",
        "loss.r1=0.5", "loss.name=non_saturating", "ema.half_life=30", "ema.start=2")  # fmt: skip
REGULARIZED = (
    "generator.class_norm=shared", "generator.hierarchical=true", "loss.name=relativistic", "loss.r1=0.5",
    "loss.r1_every=2", "loss.r2=0.1", "loss.lecam=0.1", "loss.orthogonal=1e-4",
    "loss.consistency={reals: 5, fakes: 2, latents: 1, diversity: 0.1}",
)  # fmt: skip
STANDIN = register_standin()
SCORED = ("evaluate.every=1", "evaluate.num=8", "evaluate.metrics=[coherence]")
pytestmark = pytest.mark.usefixtures("alone")


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Weights, optimizers, snapshot, sample grid and log of two runs, bit for bit."""
    for part in (f"checkpoints/{step:08d}", f"snapshots/{step:08d}"):
        assert files_of(a / part), part
        assert files_of(a / part) == files_of(b / part), part
    assert log_of(a) == log_of(b)
    grids = {name: content for name, content in files_of(a / "samples").items() if name.startswith(f"{step:08d}")}
    assert grids
    assert grids.items() <= files_of(b / "samples").items()


STATEFUL = tuple(  # bases of EM attention and running statistics in both networks
    f"{name}.attention={{8: {{name: em_attention, norm: batch}}}}" for name in ("generator", "discriminator")
)


@pytest.mark.parametrize(
    "settings",
    [(), ("data.num_classes=0",), RICH, (*RICH, "optim.decay=linear", "optim.decay_start=1"), STATEFUL, REGULARIZED],
    ids=["plain", "unconditional", "rich", "decay", "bases", "biggan-regularized"],
)
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, data: PreparedData, settings: tuple[str, ...]) -> None:
    config = tiny_config(*settings, "training.steps=5")
    train_tiny(tmp_path / "whole", config, data)
    stopped = train_tiny(tmp_path / "stopped", config, data, interrupt_at=2)
    assert stopped.progress.step == 3  # the step after the signal is finished and saved
    assert [folder.name for folder in list_checkpoints(tmp_path / "stopped")] == ["00000003"]
    assert not (tmp_path / "stopped" / "snapshots").exists()
    train_tiny(tmp_path / "stopped", config, data)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", 5)


def test_a_longer_run_goes_on_to_the_bit(tmp_path: Path, data: PreparedData) -> None:
    train_tiny(tmp_path / "whole", tiny_config("training.steps=5"), data)
    for steps in (3, 5):
        train_tiny(tmp_path / "longer", tiny_config(f"training.steps={steps}"), data)
    assert_same_run(tmp_path / "whole", tmp_path / "longer", 5)


@pytest.mark.parametrize("step", [2, 3], ids=["midway", "at the last step"])
def test_an_interrupted_evaluation_resumes_to_the_bit(tmp_path: Path, data: PreparedData, step: int) -> None:
    """The signal comes in the second chunk of features: the first one is kept, and the batch is the last one."""
    scores = f"evaluate={{every: 1, num: {CHUNK + 64}, metrics: [fid], best: fid, batch_size: 32, backbone: {STANDIN}}}"
    config = tiny_config(scores, "training.steps=3", "training.sample_every=1", "training.keep_checkpoints=9")
    train_tiny(tmp_path / "whole", config, data)
    run, asked = tiny_run(tmp_path / "resumed", config, data), Counter[int]()
    evaluate = run.evaluate
    assert evaluate is not None

    def hook(folder: Path, progress: Progress, generator: Generator, say: Callable, stop: Callable[[], bool]) -> Any:
        def stop_in_the_second_chunk() -> bool:
            asked[progress.step] += 1
            if progress.step == step and asked[step] == CHUNK // 32 + 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return stop()

        return evaluate(folder, progress, generator, say, stop_in_the_second_chunk)

    run.evaluate = hook
    assert train(run, RunLog(run.folder, 0, 3, 8, lambda *_: None)) == signal.SIGTERM
    assert (run.progress.step, asked[step]) == (step, CHUNK // 32 + 2)
    assert len(list(run.folder.glob("partial-features/*/*.npz"))) == 1
    assert [line["step"] for line in lines_of(run.folder / "metrics.jsonl")] == list(range(1, step))
    train_tiny(run.folder, config, data)
    assert not (run.folder / "partial-features").exists()
    assert_same_run(tmp_path / "whole", run.folder, 3)
    assert lines_of(run.folder / "metrics.jsonl") == lines_of(tmp_path / "whole" / "metrics.jsonl")
    states = [
        read_json(folder / "checkpoints" / f"{step:08d}" / "state.json") for folder in (tmp_path / "whole", run.folder)
    ]
    assert states[0] == states[1]


def test_looking_changes_nothing(tmp_path: Path, data: PreparedData) -> None:
    often = [f"{name}_every=1" for name in ("training.sample", "training.snapshot", "training.checkpoint")]
    scores = f"evaluate={{every: 1, num: 4, metrics: [coherence, fid, kid], backbone: {STANDIN}}}"
    train_tiny(tmp_path / "often", tiny_config("training.steps=4", *often, scores), data)
    train_tiny(tmp_path / "seldom", tiny_config("training.steps=4", "training.log_every=4"), data)
    for part in ("checkpoints/00000004", "snapshots/00000004"):
        assert files_of(tmp_path / "often" / part) == files_of(tmp_path / "seldom" / part)
    assert [line["step"] for line in log_of(tmp_path / "seldom")] == [4]
    assert len(list((tmp_path / "often" / "snapshots").iterdir())) == 4


@pytest.mark.parametrize(("d_steps", "accumulation"), [(1, 1), (3, 1), (2, 4)])
def test_steps_are_counted_in_generator_updates(
    tmp_path: Path, data: PreparedData, d_steps: int, accumulation: int
) -> None:
    counts = [f"optim.d_steps={d_steps}", f"optim.accumulation={accumulation}"]
    train_tiny(tmp_path, tiny_config("training.steps=3", *counts), data)
    for name, expected in (("generator", 3), ("discriminator", 3 * d_steps)):
        state = load_file(tmp_path / "checkpoints" / "00000003" / f"{name}_optimizer.safetensors")
        assert {int(tensor) for key, tensor in state.items() if key.endswith(".step")} == {expected}


def test_a_run_is_the_algorithm(tmp_path: Path, data: PreparedData) -> None:
    config = resolved(tiny_config(*RICH, "training.steps=3"), data)
    run = tiny_run(tmp_path / "plain", config, data)
    gan = run.gan = copy.deepcopy(run.gan)
    gan.ddp_generator, gan.ddp_discriminator = gan.generator, gan.discriminator
    fetch = run.batches.fetch(data)
    for step in range(3):
        for update in (2 * step, 2 * step + 1):
            reals, draws = run.batches.reals(update, fetch(update)), run.batches.latents("discriminator", update)
            discriminator_step(gan, run.objective, list(zip(reals, draws, strict=True)), one_process())
        generator_step(gan, run.objective, run.batches.latents("generator", step), one_process())
        update_ema(gan.ema, gan.generator, decay_at(config.ema, step + 1, 8))
    run.progress = replace(run.progress, step=3)
    save(run)
    train_tiny(tmp_path / "run", config, data)
    found, expected = (files_of(tmp_path / name / "checkpoints" / "00000003") for name in ("run", "plain"))
    assert found == expected


def test_learning_rates_decay_to_zero(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=4", "optim.decay=linear", "optim.decay_start=2", "training.checkpoint_every=1",
                         "training.keep_checkpoints=4")  # fmt: skip
    train_tiny(tmp_path, config, data)
    rates = [read_json(folder / "state.json")["param_groups"] for folder in list_checkpoints(tmp_path)]
    assert [groups["generator_optimizer"][0]["lr"] for groups in rates] == [1e-3, 1e-3, 1e-3, 0.5e-3]
    assert [groups["discriminator_optimizer"][0]["lr"] for groups in rates] == [2e-3, 2e-3, 2e-3, 1e-3]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=4", "training.checkpoint_every=2")
    train_tiny(tmp_path, config, data)
    whole = files_of(tmp_path / "checkpoints" / "00000004")
    (tmp_path / "checkpoints" / "00000004" / "average.safetensors").write_bytes(b"damaged")
    run = tiny_run(tmp_path, config, data)
    said = resume(run)
    assert run.progress.step == 2
    assert "average.safetensors" in said[0]
    assert said[-1] == "resumed from step 2"
    train_tiny(tmp_path, config, data)
    assert files_of(tmp_path / "checkpoints" / "00000004") == whole


def test_pruning_spares_the_newest_whole_checkpoint(tmp_path: Path, data: PreparedData) -> None:
    train_tiny(tmp_path, tiny_config("training.steps=4", "training.checkpoint_every=2"), data)
    (tmp_path / "checkpoints" / "00000004" / "average.safetensors").write_bytes(b"damaged")
    run = tiny_run(tmp_path, tiny_config("training.steps=4", "training.keep_checkpoints=1"), data)
    resume(run)
    run.progress = replace(run.progress, step=3)
    save(run)
    assert newest_whole_checkpoint(tmp_path)[0] == tmp_path / "checkpoints" / "00000003"


def test_a_finished_run_has_both_its_last_checkpoint_and_snapshot(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=3")
    train_tiny(tmp_path / "whole", config, data)
    (tmp_path / "snapshots").write_text("in the way")
    with pytest.raises(UserError, match="is a file"):
        train_tiny(tmp_path, config, data)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["00000003"]  # it came before the snapshot
    assert final_snapshot(tmp_path, 3) is None
    (tmp_path / "snapshots").unlink()
    train_tiny(tmp_path, config, data)
    assert final_snapshot(tmp_path, 3) is not None
    assert_same_run(tmp_path / "whole", tmp_path, 3)
    shutil.rmtree(tmp_path / "snapshots" / "00000003")  # as of a run that its patience ended: nothing is left to train
    train_tiny(tmp_path, config, data)
    assert_same_run(tmp_path / "whole", tmp_path, 3)


@pytest.mark.parametrize("change", ["evaluate.best=two_objects", "evaluate.num=12", "evaluate.labels=uniform"])
def test_scores_of_another_kind_are_not_compared(tmp_path: Path, data: PreparedData, change: str) -> None:
    config = [*SCORED, "evaluate.best=hue_agreement", "evaluate.patience=9"]
    train_tiny(tmp_path, tiny_config(*config, "training.steps=2"), data)
    (tmp_path / "checkpoints" / "00000002").rename(tmp_path / "checkpoints" / "00000009")
    state = read_json(tmp_path / "checkpoints" / "00000009" / "state.json")
    for harmless in ("training.log_every=2", "evaluate.every=0", "evaluate.batch_size=2"):
        run = tiny_run(tmp_path, tiny_config(*config, harmless), data)
        assert resume(run) == ["resumed from step 2"]
        assert (run.progress.best, run.progress.best_step) == (state["best"], state["best_step"])
    run = tiny_run(tmp_path, tiny_config(*config, change), data)
    _, said = resume(run)
    assert said.startswith("evaluate: scores are now (best ")
    assert "not comparable" in said
    assert (run.progress.best, run.progress.best_step, run.progress.stale) == (None, None, 0)
    run = train_tiny(tmp_path, tiny_config(*config, change, "training.steps=3"), data)
    assert run.progress.best_step == 3


@pytest.mark.parametrize("synchronised", [True, False])
def test_another_number_of_processes_is_said(tmp_path: Path, data: PreparedData, synchronised: bool) -> None:
    config = tiny_config(f"generator.sync_norm={synchronised}", "training.steps=1")
    train_tiny(tmp_path, config, data)
    run = tiny_run(tmp_path, config, data)
    assert resume(run) == ["resumed from step 1"]
    mark_checkpoint(tmp_path / "checkpoints" / "00000001", replace(run.progress, processes=2))
    _, said = resume(tiny_run(tmp_path, config, data))
    assert said.startswith("saved by 2 processes, resumed by 1: the same global batch and order of data")
    assert ("batch norm normalizes over 8 images instead of 4" in said) == (not synchronised)


def test_slow_steps_are_agreed_on_sooner() -> None:
    assert [steps_to_agreement(pace) for pace in (0, 0.01, 0.3, 0.6, 1, 100)] == [10, 10, 3, 1, 1, 1]


def test_the_best_checkpoint_is_kept(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=4", "training.keep_checkpoints=1", "training.checkpoint_every=4",
                         *SCORED, "evaluate.best=hue_agreement")  # fmt: skip
    run = train_tiny(tmp_path, config, data)
    scores = lines_of(tmp_path / "metrics.jsonl")
    assert [score["step"] for score in scores] == [1, 2, 3, 4]
    best = max(scores, key=lambda score: (score["hue_agreement"], -score["step"]))
    assert (run.progress.best, run.progress.best_step) == (best["hue_agreement"], best["step"])
    assert {int(folder.name) for folder in list_checkpoints(tmp_path)} == {best["step"], 4}
    assert (tmp_path / "snapshots" / f"{best['step']:08d}").is_dir()


def test_a_score_that_stands_ends_the_run(tmp_path: Path, data: PreparedData) -> None:
    config = tiny_config("training.steps=9", *SCORED, "evaluate.best=two_objects", "evaluate.patience=2")
    run = train_tiny(tmp_path, config, data)
    assert (run.progress.step, run.progress.best_step, run.progress.stale) == (3, 1, 2)
    assert (tmp_path / "snapshots" / "00000003").is_dir()
    assert (tmp_path / "samples" / "00000003.png").is_file()
    assert list_checkpoints(tmp_path)[-1].name == "00000003"
    assert train_tiny(tmp_path, config, data).progress.step == 3
    assert train_tiny(tmp_path, replaced(config, {"evaluate": {"patience": 3}}), data).progress.step == 4


@pytest.mark.parametrize("layout", [True, False], ids=["channels-last", "contiguous"])
def test_bfloat16_trains(tmp_path: Path, data: PreparedData, layout: bool) -> None:
    config = tiny_config("training.precision=bf16", f"training.channels_last={layout}", "training.steps=2", "loss.r1=1")
    train_tiny(tmp_path, config, data)
    train_tiny(tmp_path / "full", tiny_config("training.steps=2", "loss.r1=1"), data)
    for found, expected in zip(log_of(tmp_path), log_of(tmp_path / "full"), strict=True):
        assert found.keys() == expected.keys()
        assert found["d_loss"] == pytest.approx(expected["d_loss"], rel=0.1)
    for tensor in load_file(tmp_path / "checkpoints" / "00000002" / "generator_optimizer.safetensors").values():
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.precision=fp16", "training.precision: fp16 needs a CUDA device"),
        ("training.trackers=[nonsense]", "nonsense"),
        pytest.param("training.trackers=[aim]", "aim", marks=pytest.mark.skipif(
            is_aim_available(), reason="aim is installed")),
        pytest.param("training.device=cuda", "no CUDA device", marks=pytest.mark.skipif(
            torch.cuda.is_available(), reason="this machine has CUDA")),
        pytest.param("training.device=mps", "no MPS device", marks=pytest.mark.skipif(
            torch.backends.mps.is_available(), reason="this machine has MPS")),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_refused(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        make_accelerator(tiny_config(override), tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_environment_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator(tiny_config(), tmp_path)
    assert accelerator.mixed_precision == "no"
    assert not is_compiled_module(accelerator.prepare(torch.nn.Linear(1, 1)))
    loss = torch.ones((), requires_grad=True)
    accelerator.backward(loss)
    assert loss.grad == 1


@pytest.mark.parametrize(
    ("capable", "launcher", "recorded", "expected"),
    [(True, None, None, "bf16"), (False, None, None, "float32"), (True, "no", None, "float32"),
     (False, None, "bf16", "bf16"), (True, None, "float32", "float32")],
)  # fmt: skip
def test_auto_precision_follows_the_run_then_the_launcher_then_the_processor(
    monkeypatch: pytest.MonkeyPatch, capable: bool, launcher: str | None, recorded: str | None, expected: str
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: capable)
    run = tiny_config(f"training.precision={recorded}") if recorded else None
    config, message = resolve_precision(tiny_config("training.precision=auto"), run)
    assert config.training.precision == expected
    assert recorded or f"auto is {expected}" in str(message)


@pytest.mark.parametrize(
    ("variable", "said", "expected"),
    [("MIXED_PRECISION", "bf16", "training.precision: float32 of the config holds, not --mixed_precision bf16"),
     ("DYNAMO_BACKEND", "INDUCTOR", "training.compile: false of the config holds, not --dynamo_backend inductor"),
     ("GRADIENT_ACCUMULATION_STEPS", "4", "optim.accumulation: 1 of the config holds, not --gradient_accumulation"),
     ("MIXED_PRECISION", "no", None), ("DYNAMO_BACKEND", "NO", None), ("GRADIENT_ACCUMULATION_STEPS", "1", None)],
)  # fmt: skip
def test_says_what_holds_where_launcher_and_config_differ(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str, expected: str | None
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", said)
    messages = launcher_conflicts(tiny_config())
    assert [message.startswith(str(expected)) for message in messages] == [True] * (expected is not None)


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_refuses_plugins_of_the_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match="is not supported, because both networks fit on every GPU; use --multi_gpu"):
        launcher_conflicts(tiny_config())


@pytest.mark.parametrize("old", ["no", "'no'", "false"])
def test_the_old_name_of_float32_still_works(old: str) -> None:
    assert tiny_config(f"training.precision={old}").training.precision == "float32"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tf32", "expected"), [("null", (True, False)), ("true", (True, True)), ("false", (False, False))]
)
def test_float32_on_cuda(tmp_path: Path, data: PreparedData, tf32: str, expected: tuple[bool, bool]) -> None:
    """TF32 in convolutions and matrix products, and cuDNN's search; scores switch TF32 off for themselves."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (True, False, False)  # torch's defaults
    try:
        tiny_run(tmp_path, tiny_config(f"training.tf32={tf32}", f"training.cudnn_benchmark={tf32 == 'true'}"), data)
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (*expected, tf32 == "true")
        with cudnn.flags(enabled=True, allow_tf32=False):
            assert not cudnn.allow_tf32
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = True, False, False


def test_searching_kernels_is_not_deterministic() -> None:
    with pytest.raises(UserError, match="cudnn_benchmark and deterministic exclude each other"):
        tiny_config("deterministic=true", "training.cudnn_benchmark=true")


def test_deterministic_is_heard(tmp_path: Path, data: PreparedData) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        tiny_run(tmp_path, tiny_config("deterministic=true"), data)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)

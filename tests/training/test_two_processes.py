"""Two real processes (torchrun, gloo, CPU) against one: the same losses at the same global batch."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from processes import ENVIRONMENT, RATES, ROOT, assert_same_losses, fork_two, launch, start_two, train_in_two, wait_for
from safetensors.torch import load_file
from standin import random_weights
from tiny import files_of, lines_of, log_of, tiny_config, train_tiny, write_config

from sagan.data.dataset import PreparedData
from sagan.runs.checkpoint import newest_whole_checkpoint

SYNCHRONIZED = {"generator": {"sync_norm": True}, "training": {"steps": 4}, "optim": RATES}
pytestmark = pytest.mark.usefixtures("alone")


def test_two_processes_are_one(tmp_path: Path, data: PreparedData) -> None:
    scored = {"evaluate": {"every": 2, "num": 8, "metrics": ["coherence"], "best": "hue_agreement"}}
    config = write_config(tmp_path / "config.yaml", data, **SYNCHRONIZED, **scored)
    assert fork_two(config, tmp_path / "two").count("step 4/4") == 1
    train_tiny(tmp_path / "one", tiny_config("generator.sync_norm=true", "training.steps=4", f"optim={RATES}"), data)
    assert_same_losses(tmp_path / "two", tmp_path / "one", rel=1e-4)
    assert {p.name for p in (tmp_path / "two" / "checkpoints").iterdir()} >= {"00000004"}
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto takes the GPUs")
def test_processes_without_a_gpu_know_each_other(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 2, "device": "auto"})
    assert train_in_two(config, tmp_path / "run").count("step 2/2") == 1


REGULARIZED = {
    "name": "relativistic", "r1": 0.5, "r2": 0.5, "r2_every": 2, "lecam": 0.1, "orthogonal": 1e-4,
    "consistency": {"reals": 5, "fakes": 2, "latents": 1, "diversity": 0.1},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": {"name": "non_saturating", "r1": 1.0}, "augment": {"policy": ["color", "translation"]}},
        {"loss": REGULARIZED},
    ],
    ids=["plain", "r1-augmented", "regularized"],
)
def test_micro_batches_of_two_processes_are_those_of_one(
    tmp_path: Path, data: PreparedData, settings: dict[str, dict]
) -> None:
    settings = {**settings, "optim": {"d_steps": 2, "accumulation": 2, **RATES}, "training": {"steps": 3}}
    config = write_config(tmp_path / "config.yaml", data, **settings)
    train_in_two(config, tmp_path / "two")
    loss, policy = settings.get("loss", {}), settings.get("augment", {}).get("policy", [])
    one = tiny_config(f"optim={RATES}", "optim.d_steps=2", "optim.accumulation=4", "training.steps=3",
                      f"augment.policy={policy}", *(f"loss.{key}={value}" for key, value in loss.items()))  # fmt: skip
    train_tiny(tmp_path / "one", one, data)
    assert_same_losses(tmp_path / "two", tmp_path / "one", rel=1e-4)
    generator, average = (load_file(tmp_path / "two" / "checkpoints" / "00000003" / f"{name}.safetensors")
                          for name in ("generator", "average"))  # fmt: skip
    for name in (name for name in generator if ".running_" in name):  # of both processes, not of the main one
        assert torch.equal(generator[name], average[name])


@pytest.mark.slow
def test_bases_and_statistics_in_attention_are_those_of_one_process(tmp_path: Path, data: PreparedData) -> None:
    attention = {
        "generator": {"sync_norm": True, "attention": {8: {"name": "selective_kernel", "norm": "batch"}}},
        "discriminator": {"attention": {8: {"name": "em_attention", "bases": 4, "norm": "batch", "gain": "none"}}},
    }
    config = write_config(tmp_path / "config.yaml", data, **attention, training={"steps": 3}, optim=RATES)
    train_in_two(config, tmp_path / "two")
    one = [f"{player}.{name}={json.dumps(value)}" for player, each in attention.items() for name, value in each.items()]
    train_tiny(tmp_path / "one", tiny_config(*one, "training.steps=3", f"optim={RATES}"), data)
    assert_same_losses(tmp_path / "two", tmp_path / "one", rel=1e-3)
    for network in ("generator", "discriminator"):
        states = [load_file(tmp_path / run / f"checkpoints/00000003/{network}.safetensors") for run in ("two", "one")]
        found, expected = ({n: t for n, t in s.items() if "running_" in n or "bases" in n} for s in states)
        assert found
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_resume(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, **SYNCHRONIZED)
    train_in_two(config, tmp_path / "whole")
    train_in_two(config, tmp_path / "resumed", "training.steps=2")
    assert "resumed from step 2" in train_in_two(config, tmp_path / "resumed")
    assert log_of(tmp_path / "resumed") == log_of(tmp_path / "whole")
    assert_same_losses(tmp_path / "resumed", tmp_path / "whole", rel=0)
    whole, resumed = (files_of(tmp_path / name / "snapshots" / "00000004") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_to_the_launcher_saves(tmp_path: Path, data: PreparedData, number: signal.Signals) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 100_000})
    with launch(config, tmp_path / "run") as process:
        wait_for(process, tmp_path / "run" / "log.jsonl")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert checkpoint.name == f"{step:08d}"
    assert f"at step {step} and saved; run the same command again to resume" in said


@pytest.mark.slow
def test_a_signal_to_one_process_stops_an_evaluation_of_two(tmp_path: Path, data: PreparedData) -> None:
    """The other one follows; resumed, the scores are those of an undisturbed run."""
    scores = {"every": 1, "num": 100, "batch_size": 2, "metrics": ["fid"], "backbone_weights": str(tmp_path / "w.pth")}
    torch.save(random_weights(0), tmp_path / "w.pth")
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 1}, evaluate=scores)
    both = start_two(config, tmp_path / "run")
    wait_for(both[1], tmp_path / "run" / "log.jsonl")
    time.sleep(2)
    os.kill(both[1].pid or 0, signal.SIGTERM)
    for process in both:
        process.join(timeout=20)
    assert [process.exitcode for process in both] == [143, 143]
    checkpoint, _ = newest_whole_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert json.loads((checkpoint / "state.json").read_text())["unscored"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    fork_two(config, tmp_path / "run")
    fork_two(config, tmp_path / "whole")
    (found,), (expected,) = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert found["fid"] == expected["fid"]


SRUN = """#!/bin/bash
for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_NODEID=$i "$@" & done
wait
"""


@pytest.mark.slow
def test_the_slurm_script_resumes_with_other_nodes(tmp_path: Path, data: PreparedData) -> None:
    """The script of docs/scale.md, with stand-ins for srun and scontrol: two nodes, SIGTERM, then one node."""
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 100_000})
    text = (ROOT / "docs" / "scale.md").read_text()
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.DOTALL)
    assert script is not None
    words = "train.py imagenet128 --out runs/imagenet --set data.source=DATA"
    assert words in script[1]
    (tmp_path / "job.sh").write_text(script[1].replace(words, f"{ROOT / 'train.py'} {config} --out {tmp_path / 'run'}"))
    for name, content in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    step = 0
    for nodes in ("2", "1"):
        slurm = {"SLURM_NNODES": nodes, "SLURM_JOB_NODELIST": "here", "GPUS": "1", "PORT": port}
        with subprocess.Popen(
            ["bash", str(tmp_path / "job.sh")], env={**ENVIRONMENT, **slurm, "PATH": path}, stderr=subprocess.PIPE,
            text=True,
        ) as job:  # fmt: skip
            wait_for(job, tmp_path / "run" / "log.jsonl")
            while log_of(tmp_path / "run")[-1]["step"] <= step:
                time.sleep(0.1)
            for process in psutil.Process(job.pid).children(recursive=True):  # Slurm signals launchers and trainers
                if process.name() != "bash":
                    process.send_signal(signal.SIGTERM)
            _, said = job.communicate(timeout=120)
        assert f"resumed from step {step}" in said or not step, said
        newest, _ = newest_whole_checkpoint(tmp_path / "run")
        assert newest is not None, said
        assert f"at step {int(newest.name)} and saved" in said
        step = int(newest.name)
    assert "saved by 2 processes, resumed by 1" in said


@pytest.mark.slow
def test_slow_steps_are_stopped_in_time(tmp_path: Path, data: PreparedData) -> None:
    slow = {"training": {"steps": 1000, "batch_size": 64}, "optim": {"d_steps": 60}}
    config = write_config(tmp_path / "config.yaml", data, **slow)
    with launch(config, tmp_path / "run") as process:
        wait_for(process, tmp_path / "run" / "log.jsonl")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=200)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(checkpoint.name) <= 3, said


@pytest.mark.slow
def test_a_killed_worker_ends_the_other(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 100_000, "checkpoint_every": 2})
    with launch(config, tmp_path / "run") as process:
        wait_for(process, tmp_path / "run" / "checkpoints" / "00000004")
        workers = psutil.Process(process.pid).children()
        (second,) = [worker for worker in workers if worker.environ().get("RANK") == "1"]
        begun = time.monotonic()
        second.kill()
        _, said = process.communicate(timeout=120)
        seconds = time.monotonic() - begun
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in said
    assert seconds < 20, said
    assert not any(worker.is_running() for worker in workers)
    newest, problems = newest_whole_checkpoint(tmp_path / "run")
    assert newest is not None
    assert problems == []
    with launch(config, tmp_path / "run") as process:
        wait_for(process, newest.with_name(f"{int(newest.name) + 2:08d}"))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert f"resumed from step {int(newest.name)}\n" in said


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 100_000, "checkpoint_every": 3})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to("/proc/none")  # no folder can be made there
    said = train_in_two(config, tmp_path / "run", succeeds=False)  # gloo would wait for half an hour
    assert f"sagan: {tmp_path / 'run' / 'checkpoints'}: " in said


@pytest.mark.slow
def test_two_launchers_in_a_new_folder(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 30})
    both = [launch(config, tmp_path / "run") for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(code == 0 for code in codes) == [False, True], said
    refused = next(text for text, code in zip(said, codes, strict=True) if code)
    assert refused.count("another process is training in this folder") == 1
    assert [line["step"] for line in log_of(tmp_path / "run")] == [*range(1, 31)]
    assert newest_whole_checkpoint(tmp_path / "run") == (tmp_path / "run" / "checkpoints" / "00000030", [])


@pytest.mark.slow
def test_a_batch_that_does_not_divide(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"batch_size": 9})
    said = train_in_two(config, tmp_path / "run", succeeds=False)
    assert said.count("training.batch_size 9 is not divisible by 2 processes") == 1
    assert "exitcode  : 2" in said
    assert "sagan/" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()

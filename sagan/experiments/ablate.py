"""`sagan ablate`: train one config in variants, each with the same seeds, and compare them.

An ablation is a list of configs, a loop over `sagan train` processes, and a table. Its folder holds ablation.json (what
was asked for and what came of it), variants/NAME.yaml, runs/NAME-seedN and output/NAME-seedN.txt.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from sagan.config.load import check_processes
from sagan.config.options import Place, as_json
from sagan.config.schema import Config
from sagan.data.dataset import PreparedData
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.experiments.ablation import RECORD, Ablation, Key, make_plan, merged, of_variant, read_ablation
from sagan.experiments.ablation_report import Run, report
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.runs.run_dir import lock_run
from sagan.training.trainer import resolved
from sagan.utils.errors import UserError
from sagan.utils.io import check_folder_place, make_folder
from sagan.utils.progress import Progress
from sagan.utils.system import caught_signals, peak_resident_mib

# --- training

# `sagan`, which is told to save and stop when the pipe on its stdin closes: when ablate has ended, even by SIGKILL
SAGAN = """
import os, signal, threading

def stop_with_ablate():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop_with_ablate, daemon=True).start()
from sagan.cli import main
main()
"""


def check_variants(configs: dict[str, Config], folder: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Build every variant's networks on the meta device, prepare the data, and find devices and weights.

    Returns the parameters of generator and discriminator, and the kind of device. Writes nothing to `folder`. UserError
    for the first variant that could not be trained or scored.
    """
    from accelerate.state import AcceleratorState

    from sagan.training.evaluator import make_evaluator
    from sagan.training.state import make_accelerator

    for name, config in configs.items():  # mistakes first: preparing data takes long
        of_variant(name, count_parameters, config, config.data.num_classes or 0)
    prepared: dict[str, PreparedData] = {}
    parameters, devices = {}, dict[str, str]()
    for name, config in configs.items():
        data = config.data.model_dump_json()
        if data not in prepared:
            prepared[data] = of_variant(name, ensure_prepared, config.data, None, to_stderr)
        config = resolved(config, prepared[data])
        classes = config.data.num_classes or 0
        parameters[name] = of_variant(name, count_parameters, config, classes)
        of_variant(name, check_processes, config, 1)
        training = config.training
        asked = f"{training.device} {training.precision} {training.trackers} {data}"
        if asked not in devices:
            device = of_variant(name, make_accelerator, config, folder).device
            AcceleratorState._reset_state(reset_partial_state=True)  # one process allows one precision
            of_variant(name, make_evaluator, config.evaluate, prepared[data], classes, device)
            devices[asked] = device.type
    return parameters, next(iter(devices.values()))


def count_parameters(config: Config, classes: int) -> tuple[int, int]:
    """Parameters of generator and discriminator."""
    with torch.device("meta"):
        generator = Generator(config.generator, config.data.resolution, classes)
        discriminator = Discriminator(config.discriminator, config.data.resolution, classes)
    return sum(p.numel() for p in generator.parameters()), sum(p.numel() for p in discriminator.parameters())


@dataclass
class Child:
    """A `sagan train` process. `slot`: the index of its GPU; `step`: its last known step."""

    key: Key
    process: subprocess.Popen[bytes]
    slot: int
    step: int
    started: float


def train_runs(
    ablation: Ablation, keys: Sequence[Key], slots: Sequence[str | None], on_gpu: bool, save: Callable[[], None]
) -> int | None:
    """Train the runs `keys`, one at a time for each of `slots`: the GPUs that a run may see, None for all.

    Returns the signal that ended it early, or None. The first signal lets the runs save; a second one kills them.
    """
    waiting, running, told = list(keys), list[Child](), False
    left = sum(ablation.configs[variant].training.steps for variant, _ in keys)
    left -= sum(_last_step(ablation.run_folder(key)) for key in keys)
    with caught_signals() as received, Progress(max(left, 1), f"{len(keys)} runs, steps") as progress, _killed(running):
        while running or (waiting and not received):
            while waiting and not received and len(running) < len(slots):
                slot = next(n for n in range(len(slots)) if n not in [child.slot for child in running])
                key = waiting.pop(0)
                print(f"[{len(keys) - len(waiting)}/{len(keys)}] {key[0]}, seed {key[1]}", file=sys.stderr, flush=True)
                running.append(_start(ablation, key, slot, slots))
            if received and not told:
                told = True
                # another signal than ours: a terminal sends the same one to the runs, and a second one kills
                other = signal.SIGTERM if received[0] == signal.SIGUSR1 else signal.SIGUSR1
                for child in running:
                    child.process.send_signal(other)
            for child in [*running]:
                pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
                steps = ablation.configs[child.key[0]].training.steps
                step = max(child.step, steps if pid else _last_step(ablation.run_folder(child.key)))
                progress.advance(step - child.step)
                child.step = step
                if pid:
                    running.remove(child)
                    child.process.returncode = code = os.waitstatus_to_exitcode(status)
                    _close(child)
                    peak = None if on_gpu else peak_resident_mib(usage)
                    _record(ablation, child, code, peak, stopped=bool(received))
                    save()
            time.sleep(0.2)
    return received[0] if received else None


def _start(ablation: Ablation, key: Key, slot: int, slots: Sequence[str | None]) -> Child:
    run, output, environment = ablation.run_folder(key), ablation.output_file(key), dict(os.environ)
    if slots[slot] is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(slots[slot])
    elif len(slots) > 1:  # processes that share the CPU share its cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(slots))))
    command = [sys.executable, "-c", SAGAN, "train"]
    options = [str(ablation.config_file(key[0])), "--out", str(run), "--set", f"seed={key[1]}"]
    make_folder(output.parent)
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    return Child(key, process, slot, _last_step(run), time.monotonic())


def _record(ablation: Ablation, child: Child, code: int, peak: float | None, stopped: bool) -> None:
    """Update the run: seconds of all its sessions, the highest peak, and why it failed."""
    run = ablation.runs[child.key]
    run.seconds += time.monotonic() - child.started
    run.peak_mib = max((each for each in (run.peak_mib, peak) if each is not None), default=None)
    run.state = "done" if code == 0 else "stopped" if stopped else "failed"
    run.reason = ""
    if run.state == "failed" and code < 0:
        hint = ", as where memory runs out" if -code == signal.SIGKILL else ""
        run.reason = f"killed by {signal.Signals(-code).name}{hint}"
    elif run.state == "failed":
        text = ablation.output_file(child.key).read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        messages = [line.removeprefix("sagan: ") for line in lines if line.startswith("sagan: ")]
        run.reason = [f"exit code {code}", *lines, *messages][-1]
    if run.state != "done":
        reason = run.reason or "run the same command again to resume"
        print(f"{child.key[0]}-seed{child.key[1]} {run.state}: {reason}", file=sys.stderr)


def _last_step(run: Path) -> int:
    """The step of the last whole line of a run's log; 0 without one."""
    with (
        suppress(FileNotFoundError, ValueError, KeyError, TypeError, IndexError),
        open(run / "log.jsonl", "rb") as file,
    ):
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
        return int(json.loads(re.findall(rb"[^\n]+(?=\n)", file.read())[-1])["step"])
    return 0


@contextmanager
def _killed(running: list[Child]) -> Iterator[None]:
    """Leave no process behind, however the block ends."""
    try:
        yield
    finally:
        for child in running:
            child.process.kill()
            child.process.wait()
            _close(child)


def _close(child: Child) -> None:
    assert child.process.stdin is not None
    child.process.stdin.close()


# --- the command


@click.command("ablate")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--vary", multiple=True, metavar="KEY[+KEY]=V1,V2,…", help="A setting and its values; several: every combination."
)
@click.option("--seeds", metavar="0-2", help="Train every variant with each of these (default: the config's seed).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting in all variants.")
@click.option("--reference", metavar="DATA", help="Short for --set evaluate.reference=…")
@click.option("--out", type=Place(), help="Folder of the ablation; run the same command again to resume.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Number of runs to train at a time.")
@click.option("--devices", metavar="0,1", help="Train one run at a time on each of these GPUs.")
@as_json
def ablate_cli(
    config: Path, vary: tuple[str, ...], seeds: str | None, overrides: tuple[str, ...], reference: str | None,
    out: Path | None, jobs: int | None, devices: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Train CONFIG in variants with the same seeds, and compare their scores, costs and attention.

    CONFIG may be the folder of an ablation, whose table is then printed again.
    """
    if config.is_dir():
        given = {"--vary": vary, "--seeds": seeds, "--set": overrides, "--reference": reference, "--out": out,
                 "--jobs": jobs, "--devices": devices}  # fmt: skip
        _show(config, [name for name, value in given.items() if value], as_json)
        return 0
    if not vary:
        raise UserError("--vary: nothing varies; such as --vary generator.attention.16=self_attention,null")
    if out is None:
        raise UserError("--out: name the folder of the ablation")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("ablate starts its runs itself; start it without torchrun or accelerate launch")
    slots = parse_slots(jobs, devices)
    if reference is not None:  # as a string of YAML: a folder may be called 3
        overrides = (*overrides, f"evaluate.reference={json.dumps(reference)}")
    plan = make_plan(str(config), vary, seeds, overrides)
    check_folder_place(out)
    found = merged(out, plan)
    parameters, device = dict[str, tuple[int, int]](), "cpu"
    if not all(found.finished(key) and key[0] in found.parameters for key in plan.runs):
        parameters, device = check_variants(plan.configs, out)
    with lock_run(out):
        ablation = merged(out, plan)
        ablation.parameters |= parameters
        ablation.save({})
        waiting = [key for key in plan.runs if not ablation.finished(key)]
        stopped = None
        if waiting:
            stopped = train_runs(ablation, waiting, slots, device == "cuda", lambda: ablation.save({}))
        _report(ablation, as_json, picture=stopped is None)
    if stopped is not None:
        return 128 + stopped
    return 1 if any(not ablation.finished(key) for key in plan.runs) else 0


def parse_slots(jobs: int | None, devices: str | None) -> list[str | None]:
    """One slot for each run at a time: the GPU it sees, None for all of them."""
    if devices is None:
        return [None] * (jobs or 1)
    if jobs is not None:
        raise UserError("--jobs and --devices exclude each other; each of the --devices trains one run at a time")
    slots = [name.strip() for name in devices.split(",")]
    if not all(slots):
        raise UserError(f"--devices {devices}: expected GPUs separated by commas, such as 0,1")
    if len({*slots}) < len(slots):
        raise UserError(f"--devices {devices}: one is given twice")
    return [*slots]


def _show(folder: Path, given: list[str], as_json: bool) -> None:
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: no ablation, it has no {RECORD}; name a config, or the folder of one")
    if given:
        raise UserError(f"{given[0]}: {folder} is an ablation, which is only shown; to continue it name its config")
    ablation = read_ablation(folder)
    assert ablation is not None, "its record is there"
    _report(ablation, as_json, picture=True)


def _report(ablation: Ablation, as_json: bool, picture: bool) -> None:
    runs = [
        Run(*key, ablation.run_folder(key), ablation.output_file(key).relative_to(ablation.folder),
            ablation.finished(key), run.state, run.reason, run.seconds, run.peak_mib)
        for key, run in sorted(ablation.runs.items())
    ]  # fmt: skip
    results = report(ablation.folder, ablation.base, ablation.variants, ablation.parameters, runs, as_json, picture)
    ablation.save(results)

"""`sagan ablate`: train one config in variants, each with the same seeds, and compare them.

An ablation is a list of configs, a loop over `sagan train` processes, and a table. Its folder holds ablation.json (the
plan, the state of its runs, the results), variants/NAME.yaml, runs/NAME-seedN and output/NAME-seedN.txt.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from sagan.config.load import check_processes
from sagan.config.options import Place, as_json
from sagan.config.schema import Config
from sagan.data.dataset import PreparedData
from sagan.data.prepare import ensure_prepared
from sagan.experiments.ablation import RECORD, Ablation, Key, merged, plan_ablation, read_ablation, variant_errors
from sagan.experiments.ablation_report import report
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.runs.run_dir import lock_run
from sagan.training.trainer import resolved
from sagan.utils.errors import UserError
from sagan.utils.io import check_folder_place, make_folder
from sagan.utils.progress import Progress
from sagan.utils.system import caught_signals, peak_resident_mib

# `sagan` that saves and stops when the pipe on its stdin closes, as it does when ablate has ended, even by SIGKILL
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
    """Check that every variant can be trained and evaluated; prepares the data, writes nothing to `folder`.

    Returns the parameters of generator and discriminator, and the type of device. UserError for the first variant that
    fails.
    """
    from accelerate.state import AcceleratorState

    from sagan.training.evaluator import make_evaluator
    from sagan.training.state import make_accelerator, resolve_precision

    for name, config in configs.items():  # first what is fast: preparing data takes long
        with variant_errors(name):
            count_parameters(config)
            check_processes(config, 1)
    parameters, prepared, devices = {}, dict[str, PreparedData](), dict[str, str]()
    for name, config in configs.items():
        with variant_errors(name):
            source = config.data.model_dump_json()
            if source not in prepared:
                prepared[source] = ensure_prepared(config.data)
            data = prepared[source]
            config, _ = resolve_precision(resolved(config, data), None)
            parameters[name] = count_parameters(config)
            setup = source + config.training.model_dump_json(include={"device", "precision", "trackers"})
            if setup not in devices:
                device = make_accelerator(config, folder).device
                AcceleratorState._reset_state(reset_partial_state=True)  # one process allows one precision
                make_evaluator(config.evaluate, data, config.data.num_classes or 0, device)
                devices[setup] = device.type
    return parameters, next(iter(devices.values()))


def count_parameters(config: Config) -> tuple[int, int]:
    """Parameters of generator and discriminator."""
    size, channels, classes = config.data.resolution, config.data.channels, config.data.num_classes or 0
    with torch.device("meta"):
        networks = (Generator(config.generator, size, classes, (), channels),
                    Discriminator(config.discriminator, size, classes, channels))  # fmt: skip
    generator, discriminator = (sum(p.numel() for p in network.parameters()) for network in networks)
    return generator, discriminator


@dataclass
class Child:
    """A `sagan train` process. `slot`: the index of its GPU; `step`: its last known step."""

    key: Key
    process: subprocess.Popen[bytes]
    slot: int
    step: int
    started: float


def train_runs(ablation: Ablation, keys: Sequence[Key], slots: Sequence[str | None], on_gpu: bool) -> int | None:
    """Train the runs `keys`, one at a time for each of `slots`: the GPUs that a run may see, None for all.

    Returns the signal that ended it early, or None. The first signal lets the runs save; a second one kills them.
    """
    waiting, running, forwarded = list(keys), list[Child](), False
    left = sum(ablation.configs[key[0]].training.steps - _last_step(ablation.run_folder(key)) for key in keys)
    progress = Progress(max(left, 1), f"{len(keys)} runs, steps")
    with caught_signals() as received, progress, ExitStack() as processes:
        while running or (waiting and not received):
            while waiting and not received and len(running) < len(slots):
                slot = next(n for n in range(len(slots)) if n not in [child.slot for child in running])
                key = waiting.pop(0)
                print(f"[{len(keys) - len(waiting)}/{len(keys)}] {key[0]}, seed {key[1]}", file=sys.stderr, flush=True)
                child = _start(ablation, key, slot, slots)
                processes.enter_context(child.process)
                processes.callback(child.process.kill)  # leave no process behind, however this ends
                running.append(child)
            if received and not forwarded:
                forwarded = True
                for child in running:  # not SIGINT: a terminal sends that to the runs, too, and a second one kills
                    child.process.terminate()
            for child in [*running]:
                pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
                steps = ablation.configs[child.key[0]].training.steps
                step = max(child.step, steps if pid else _last_step(ablation.run_folder(child.key)))
                progress.advance(step - child.step)
                child.step = step
                if pid:
                    running.remove(child)
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    _record(ablation, child, None if on_gpu else peak_resident_mib(usage), stopped=bool(received))
            time.sleep(0.2)
    return received[0] if received else None


def _start(ablation: Ablation, key: Key, slot: int, slots: Sequence[str | None]) -> Child:
    run, output, environment = ablation.run_folder(key), ablation.output_file(key), dict(os.environ)
    if slots[slot] is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(slots[slot])
    elif len(slots) > 1:  # processes that share the CPU share its cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(slots))))
    command = [sys.executable, "-c", SAGAN, "train", str(ablation.config_file(key[0]))]
    command += ["--out", str(run), "--set", f"seed={key[1]}"]
    make_folder(output.parent)
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    return Child(key, process, slot, _last_step(run), time.monotonic())


def _record(ablation: Ablation, child: Child, peak: float | None, stopped: bool) -> None:
    """Save the state of a run whose process ended: seconds of all its sessions, the highest peak, why it failed."""
    run, code = ablation.runs[child.key], child.process.returncode
    run.seconds += time.monotonic() - child.started
    run.peak_mib = max((each for each in (run.peak_mib, peak) if each is not None), default=None)
    run.state = "done" if code == 0 else "stopped" if stopped else "failed"
    run.reason = ""
    if run.state == "failed" and code < 0:
        hint = ", possibly out of memory" if -code == signal.SIGKILL else ""
        run.reason = f"killed by {signal.Signals(-code).name}{hint}"
    elif run.state == "failed":
        text = ablation.output_file(child.key).read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        messages = [line.removeprefix("sagan: ") for line in lines if line.startswith("sagan: ")]
        run.reason = [f"exit code {code}", *lines, *messages][-1]
    if run.state != "done":
        reason = run.reason or "run the same command again to resume"
        print(f"{child.key[0]}-seed{child.key[1]} {run.state}: {reason}", file=sys.stderr)
    ablation.save({})


def _last_step(run: Path) -> int:
    """The last step in a run's log; 0 without one."""
    with suppress(FileNotFoundError), open(run / "log.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
        return int([b"0", *re.findall(rb'"step": (\d+),', file.read())][-1])
    return 0


# --- the command


@click.command("ablate")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--vary", multiple=True, metavar="KEY[+KEY]=V1,V2,…", help="A setting and its values; repeat for all combinations."
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

    CONFIG may be the folder of an ablation: its results are printed again.
    """
    if config.is_dir():
        _show(config, as_json)
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
    plan = plan_ablation(out, str(config), vary, seeds, overrides)
    check_folder_place(out)
    found, device = merged(plan), "cpu"
    if not all(found.finished(key) and key[0] in found.parameters for key in plan.runs):
        plan.parameters, device = check_variants(plan.configs, out)
    with lock_run(out):
        ablation = merged(plan)
        ablation.save({})
        waiting = [key for key in plan.runs if not ablation.finished(key)]
        stopped = train_runs(ablation, waiting, slots, device == "cuda") if waiting else None
        report(ablation, as_json, picture=stopped is None)
    if stopped is not None:
        return 128 + stopped
    return 0 if all(ablation.finished(key) for key in plan.runs) else 1


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


def _show(folder: Path, as_json: bool) -> None:
    """Print the results of an ablation again."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: not an ablation, it has no {RECORD}; name a config or the folder of an ablation")
    context = click.get_current_context()
    for option in context.command.params:
        if context.params[str(option.name)] and option.name not in ("config", "as_json"):
            raise UserError(f"{option.opts[0]}: {folder} is an ablation; to continue it name its config")
    ablation = read_ablation(folder)
    assert ablation is not None, "its record exists"
    report(ablation, as_json, picture=True)

"""Measure and train on a GPU that is there for fifteen minutes, in three calls.

\b
Before, anywhere (CIFAR-10: two halves of about 42 MB; --wheels: packages for a machine without network):
  python benchmarks/gpu.py pack DATA --out PACK --wheels
On the GPU's machine; what a call brings is kept in --work for the next ones:
  python benchmarks/gpu.py first --pack PACK --out OUT       100 s   needs PACK/half-1.npz and PACK/wheels
  python benchmarks/gpu.py record --pack PACK --out OUT      590 s   needs PACK/half-2.npz
  python benchmarks/gpu.py third --out OUT                    90 s
After, with the files of `record`, which are at most 8 of 16 MiB:
  python benchmarks/gpu.py restore OUT --out RUN
  sagan evaluate RUN --num 50000 --reference DATA

`unpack FOLDER... --out PREPARED` restores the data, `rehearse --out FOLDER` does all of this on the CPU in miniature.
"""

import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from threading import Lock
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from PIL import Image

from sagan.utils.errors import UserError  # what else sagan needs, `receive` may have to install first
from sagan.utils.io import atomic_file, atomic_folder, member_names, read_arrays, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SAGAN = [sys.executable, "-c", "from sagan.cli import main; main()"]
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "filelock", "rich", "torch-fidelity",
          "lpips")  # fmt: skip
PIP = [sys.executable, "-m", "pip", "--quiet"]
TARGET = ["--python-version=3.12", "--implementation=cp", "--only-binary=:all:", "--no-deps",
          *(f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014"))]  # fmt: skip
MOSAIC, HALVES, PART = 1024, 2, 16 << 20  # pixels; files; bytes of a file that comes back
PAUSE, LATE, GRACE = 0.15, 15, 10  # share of the time before the pause; seconds after the end; seconds to save
Options = SimpleNamespace  # of the command line
Row = dict[str, Any]
Check = tuple[str, list[str]]  # name, words of a command


def settings(o: Options) -> Any:
    return import_module("sagan.config.load").load_config(o.config, [*o.changes])


def pack(o: Options) -> None:
    """Pack prepared data, or any source that sagan reads, into halves: every other image of each class."""
    source = import_module("sagan.config.schema").DataSettings(source=o.sources[0])
    data = import_module("sagan.data.prepare").ensure_prepared(source)
    whole, classes = data.manifest.model_dump(mode="json"), data.manifest.num_classes
    o.out.mkdir(parents=True, exist_ok=True)
    for half in range(HALVES):
        places = np.sort(np.argsort(data.labels, kind="stable")[half::HALVES])
        images, labels = data.gather(places)
        counts = np.bincount(labels, minlength=classes)[:classes].tolist()
        own = {"count": len(labels), "class_counts": counts, "content_hash": content_hash(images, labels)}
        about = json.dumps({"half": half, "whole": whole, "own": whole | own}).encode()
        with ThreadPoolExecutor() as pool:
            files = [np.frombuffer(file, np.uint8) for file in pool.map(encoded, mosaics(images))]
        arrays = {f"mosaic_{number:04d}": file for number, file in enumerate(files)}
        arrays |= {"about": np.frombuffer(about, np.uint8), "labels": labels, "places": places}
        with atomic_file(o.out / f"half-{half + 1}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    if o.wheels:
        names = [f"{name}=={version(name)}" for name in WHEELS]
        subprocess.run([*PIP, "download", *TARGET, "--dest", str(o.out / "wheels"), *names], check=True)


def content_hash(images: np.ndarray, labels: np.ndarray) -> str:
    """As in a manifest."""
    return sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def mosaics(images: np.ndarray) -> Iterator[np.ndarray]:
    """uint8 (H, 1024, 3), each of up to (1024 / R)² images (R, R, 3), row by row; the last is filled up with black."""
    side, cells = images.shape[1], MOSAIC // images.shape[1]
    for start in range(0, len(images), cells**2):
        some = images[start : start + cells**2]
        tiles = np.zeros((-(-len(some) // cells), cells, side, side, 3), np.uint8)
        tiles.reshape(-1, side, side, 3)[: len(some)] = some
        yield tiles.transpose(0, 2, 1, 3, 4).reshape(-1, MOSAIC, 3)


def encoded(mosaic: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "WEBP", lossless=True, quality=75, method=4)
    return file.getvalue()


def tiles(mosaic: np.ndarray, side: int) -> np.ndarray:
    """The images of a mosaic, given as the bytes of its file: uint8 (N, R, R, 3)."""
    pixels = np.asarray(Image.open(io.BytesIO(mosaic.tobytes())))
    rows = pixels.reshape(-1, side, MOSAIC // side, side, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


def read_half(file: Path) -> tuple[Row, np.ndarray, np.ndarray, np.ndarray]:
    """What is said about a half, its images, labels and places in the whole. Raises UserError if it is damaged."""
    try:
        arrays = read_arrays(file, sorted(member_names(file)), most=None)
        about, labels, places = json.loads(arrays.pop("about").tobytes()), arrays.pop("labels"), arrays.pop("places")
        with ThreadPoolExecutor() as pool:
            parts = [*pool.map(partial(tiles, side=about["own"]["resolution"]), arrays.values())]
        return about, np.concatenate(parts)[: len(labels)], labels, places
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{file}: damaged, or no half that `pack` wrote ({error}); send it again") from None


def unpack(files: Sequence[Path], out: Path) -> None:
    """Write prepared data; a single half becomes half a data set. Raises UserError if the content hash is wrong."""
    halves = [read_half(file) for file in files]
    if len({about["whole"]["content_hash"] for about, *_ in halves}) != 1:
        raise UserError("these are halves of different data" if halves else "there is no half-1.npz or half-2.npz")
    about, images, labels, _ = halves[0]
    manifest = about["own" if len(halves) == 1 else "whole"]
    if len(halves) > 1:
        order = np.argsort(np.concatenate([places for *_, places in halves]))
        images = np.concatenate([some for _, some, _, _ in halves])[order]
        labels = np.concatenate([some for _, _, some, _ in halves])[order]
    if content_hash(images, labels) != manifest["content_hash"]:
        raise UserError(f"{', '.join(map(str, files))}: not what was packed, by its content hash; send it again")
    with atomic_folder(out) as folder:
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)
        write_json(folder / "manifest.json", manifest)


def receive(o: Options, halves: int) -> Path:
    """Keep what this call brought, install its wheels, unpack the data; returns the prepared folder."""
    o.work.mkdir(parents=True, exist_ok=True)
    for half in o.pack.glob("half-*.npz"):
        shutil.copy(half, o.work)
    site, wheels = o.work / "site", [*(o.pack / "wheels").glob("*.whl")]
    if wheels and not site.exists():
        subprocess.run([*PIP, "install", "--no-index", "--no-deps", "--target", site, *wheels], check=True)
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    files = [o.work / f"half-{half + 1}.npz" for half in range(halves)]
    if lost := [file.name for file in files if not file.exists()]:
        raise UserError(f"{lost[0]} is not in {o.pack}, and no earlier call left it in {o.work}; send it again")
    unpack(files, o.work / "data")
    return o.work / "data"


def as_options(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def last_error(text: str) -> str:
    """The last line that names an error, else the last line: advice follows CUDA's errors."""
    lines = text.strip().splitlines() or ["no message"]
    return ([line for line in lines if re.match(r"sagan: |[\w.]+(Error|Exception)\b", line)] or lines)[-1][:300]


def checks(o: Options, data: Path, runs: Path) -> list[dict[str, list[str]]]:
    """Name -> words of everything that must run. The second group needs what the first has trained."""
    bf16, graphs = "training.precision=bf16", "training.cuda_graphs=true"
    table = {
        "compile": [bf16, "training.compile=true"], "cpu": ["training.device=cpu"], "float32": ["training.tf32=false"],
        "tf32": ["training.tf32=true"],
        "bf16": [bf16], "cuda_graphs": [bf16, graphs], "r1": ["loss.r1=0.1"],
        "r1_cuda_graphs": [bf16, graphs, "loss.r1=0.1", "loss.r1_every=2"],
    }  # fmt: skip
    for name in ("em_attention", "double_attention"):
        both = [f"{network}.attention={{16: {name}}}" for network in ("generator", "discriminator")]
        table[name] = [bf16, graphs, *both]
    if not import_module("torch").cuda.is_available():
        del table["compile"]  # takes minutes; it has its own tests
    same = [f"data.source={data}", "training.batch_size=16", "training.steps=6", "training.log_every=1",
            "training.trackers=[]", "training.cuda_graphs=false", "training.precision=float32", *o.changes]  # fmt: skip
    trained = {
        name: ["train", o.config, "--out", str(runs / name), *as_options([*same, *changes])]
        for name, changes in table.items()
    }
    run = str(runs / "bf16")
    return [trained, {"sample": ["sample", run, "--out", str(runs / "images"), "--num", "64"],
                      "attend": ["attend", run, "--out", str(runs / "maps"), "--network", "both"]}]  # fmt: skip


def run_check(name: str, words: list[str], runs: Path, seconds: float) -> Row:
    """ "ran" or "failed: " with the error, within a time limit; of a run, the losses of every step."""
    start = time.monotonic()
    process = subprocess.Popen([*SAGAN, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        _, errors = process.communicate(timeout=max(seconds, 0))
        state = "ran" if process.returncode == 0 else f"failed: {last_error(errors)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        state = "failed: out of time"
    row: Row = {"state": state, "seconds": round(time.monotonic() - start, 1)}
    with suppress(OSError):
        lines = map(json.loads, (runs / name / "log.jsonl").read_text().splitlines())
        row["losses"] = [[line[name] for name in ("d_loss", "g_loss", "real_logits", "fake_logits")] for line in lines]
    return row


def differences(row: Row, expected: Row) -> list[float]:
    """The largest difference of the losses in each step."""
    pairs = zip(row.get("losses", ()), expected.get("losses", ()), strict=False)
    return [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in pairs]


def first(o: Options) -> None:
    """Does it run at all, with which losses, and how fast? Writes first.json after every line."""
    end = time.monotonic() + (o.seconds or 100)
    data, runs, lock = receive(o, halves=1), o.work / "checks", Lock()
    shutil.rmtree(runs, ignore_errors=True)
    found: Row = {"started": time.strftime("%F %T"), "checks": {}, "cells": []}

    def save() -> None:
        for name in ("float32", "tf32", "bf16", "cuda_graphs", "compile"):  # the others compute something else
            if row := found["checks"].get(name):
                row["losses_differ_by"] = differences(row, found["checks"].get("cpu", {}))
        for folder in (o.out, o.work):
            write_json(folder / "first.json", found)

    def run(name: str, words: list[str]) -> None:
        share = 1 if name == "compile" else 0.6
        row = run_check(name, words, runs, share * (end - time.monotonic()))
        with lock:
            found["checks"][name] = row
            save()

    o.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 1) // 2)) as pool:
        for group in checks(o, data, runs):
            running = {name: pool.submit(run, name, words) for name, words in group.items()}
            for name, future in running.items():
                if name != "compile":  # which goes on beside the cells
                    future.result()
        for cells in measure_cells(o, end):
            with lock:
                found["cells"] = cells
                save()


def measure_cells(o: Options, end: float) -> Iterator[list[Row]]:
    """images/s in bf16 over the batch size, eager and recorded, the config's own size first; at last compiled.

    `sound`: the losses of the first steps are finite, and not far from those of the eager step.
    """
    common, step = import_module("common"), import_module("step")
    config, rows = settings(o), list[Row]()
    sizes = dict.fromkeys([config.training.batch_size, *(o.batch or (128, 256, 512))])
    forms = [step.Variant(precision="bf16", cuda_graphs=graphs) for graphs in (False, True)]
    cells = [*product(sizes, forms), (config.training.batch_size, replace(forms[0], compiled=True))]
    if not import_module("torch").cuda.is_available():
        cells = cells[::2][:-1]  # the eager ones
    work = partial(measure, config.to_dict())
    for (size, form), row in common.cells_in_processes(work, cells, end - time.monotonic(), 60):
        changes = differences(row, next((other for other in rows if other["batch_size"] == size), row))
        sound = row["state"] == "ok" and bool(np.isfinite(row["losses"]).all()) and max(changes) < 1
        way = {"batch_size": size, "compiled": form.compiled, "cuda_graphs": form.cuda_graphs}
        rows.append({**way, "sound": sound, "losses_differ_by": changes, **row})
        yield rows


def measure(raw: Row, cell: tuple[int, Any]) -> Row:
    """Losses of the first steps, then images/s and peak memory; runs in a child process."""
    common, torch, load = map(import_module, ("common", "torch", "sagan.config.load"))
    batch, variant = cell
    config = load.replaced(load.make_config(raw), {"training": {"batch_size": batch}, "optim": {"accumulation": 1}})
    device = common.pick_device(config)
    gc.collect()  # what the cell before has left
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = import_module("step").TrainingStep(config, device, variant)
    losses = [[value.item() for value in step().values()] for _ in range(5)]  # recorded updates from the fourth on
    count = max(1, min(100, round(0.5 / common.timed(step))))
    seconds, _ = common.interleaved({"step": step}, 3, count)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0  # networks included
    return {**common.about(device), "images_per_second": batch / median(seconds["step"]), "losses": losses,
            "peak_mib": peak / common.MIB}  # fmt: skip


def chosen(o: Options, batch: int) -> tuple[bool, float]:
    """Whether to record updates, and images/s: of the fastest sound cell of this batch size that needs no compiler.

    Without a measurement of recorded updates, they are tried.
    """
    found = read_json(o.work / "first.json")["cells"] if (o.work / "first.json").exists() else []
    tried = any(cell["cuda_graphs"] for cell in found)
    cells = [cell for cell in found if tried and cell["sound"] and not cell["compiled"]]
    best = max(cells, key=lambda cell: (cell["batch_size"] == batch, cell["images_per_second"]), default=None)
    graphs, rate = (best["cuda_graphs"], best["images_per_second"]) if best else (True, 5000.0)
    return graphs, o.images_per_second or rate


def record(o: Options) -> None:
    """Train so that the learning rates reach zero at --seconds of this call, and pack what must come back.

    Training pauses once, long before the decay begins, and gets its last step from the rate measured until then. If it
    fails, it goes on from its last checkpoint without CUDA graphs.
    """
    end = time.monotonic() + (o.seconds or 560)
    o.out.mkdir(parents=True, exist_ok=True)
    data, run, legs = receive(o, HALVES), o.work / "run", list[Row]()
    shutil.rmtree(run, ignore_errors=True)
    own, optim = settings(o).training.batch_size, settings(o).optim
    batch = o.batch[0] if o.batch else own
    graphs, rate = chosen(o, batch)
    fixed = [f"data.source={data}", "training.trackers=[]", f"training.batch_size={batch}", *(
        f"optim.{name}.lr={getattr(optim, name).lr * (batch / own) ** 0.5}" for name in ("generator", "discriminator")
    )]  # fmt: skip
    start_seconds, paused, begun = 15.0, False, list[str]()
    while (left := end - time.monotonic() - start_seconds) > 0:
        step = max((int(path.name) for path in run.glob("checkpoints/[0-9]*")), default=0)
        steps = step + max(1, int(rate * left / batch))
        decay_start = max(step, steps * optim.decay_start // settings(o).training.steps)
        plan = [f"training.steps={steps}", f"optim.decay_start={decay_start}",
                f"training.cuda_graphs={str(graphs).lower()}"]  # fmt: skip
        if not step:
            shutil.rmtree(run, ignore_errors=True)
            times = {"log_every": 200, "sample_every": 4, "snapshot_every": 20, "checkpoint_every": 10}
            every = [f"training.{name}={max(1, steps // each)}" for name, each in times.items()]
            begun = as_options([*fixed, *every, *o.changes, *plan])
        changes = [word for change in plan if step for word in ("--change", change)]
        words = ["train", o.config, "--out", str(run), *begun, *changes]
        leg = train(words, run, o.out, step, end + LATE if paused else end - (1 - PAUSE) * left)
        legs.append({"from": step, "to": steps, "batch_size": batch, "cuda_graphs": graphs, **leg})
        send(run, o.out, legs)
        if leg["state"] == "ran" or (leg["state"] == "stopped" and paused):
            return
        if leg["state"] == "stopped":
            paused = True
            if "step_seconds" in leg:
                rate, start_seconds = batch / leg["step_seconds"], leg["start_seconds"]
        elif graphs:
            graphs, rate = False, rate / 4
        else:
            raise UserError(f"training {leg['state']}")


def train(words: list[str], run: Path, out: Path, begin: int, until: float) -> Row:
    """Run `sagan train`; at `until` (monotonic time) it is stopped and saves. Every new snapshot is sent at once."""
    start, marks, sent, messages = time.monotonic(), list[tuple[float, int]](), "", run.with_suffix(".txt")
    with messages.open("w") as errors, subprocess.Popen([*SAGAN, *words], stderr=errors) as process:
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.25)
            with suppress(OSError, ValueError, IndexError):
                step = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]
                if step > (marks[-1][1] if marks else begin):
                    marks.append((time.monotonic() - start, step))
            if (newest := max(map(str, run.glob("snapshots/[0-9]*")), default="")) != sent:
                sent = newest
                send(run, out, [])
        stopped = process.poll() is None
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()
    row: Row = {"state": "ran", "seconds": round(time.monotonic() - start, 1)}
    if process.returncode:
        row["state"] = "stopped" if stopped else f"failed: {last_error(messages.read_text())}"
    if len(marks) > 1:
        (early, one), (late, other) = marks[0], marks[-1]
        row["step_seconds"] = (late - early) / (other - one)
        row["start_seconds"] = early - (one - begin) * row["step_seconds"]
    return row


def send(run: Path, out: Path, legs: list[Row]) -> None:
    """Write the run, without checkpoints and with its newest snapshot and sheets, to `out`; and record.json."""
    names = ("config.yaml", "run.json", "log.jsonl", "changes.jsonl", "rollbacks.jsonl", "stopped.json")
    paths = [*(run / name for name in names), *sorted(run.glob("samples/*.png"))[-4:],
             *sorted(run.glob("snapshots/[0-9]*"))[-1:]]  # fmt: skip
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in filter(Path.exists, paths):
            tar.add(path, path.relative_to(run))
    content = archive.getvalue()
    parts = [content[start : start + PART] for start in range(0, len(content), PART)]
    for number, part in enumerate(parts):
        with atomic_file(out / f"run.tar.{number}") as temporary:
            temporary.write_bytes(part)
    write_json(out / "record.json", {"legs": legs, "parts": len(parts), "sha256": sha256(content).hexdigest()})


def restore(o: Options) -> None:
    """Make the run again from the files that came back."""
    folder = Path(o.sources[0])
    about = read_json(folder / "record.json")
    content = b"".join((folder / f"run.tar.{number}").read_bytes() for number in range(about["parts"]))
    if sha256(content).hexdigest() != about["sha256"]:
        raise UserError(f"{folder}: its run.tar.* are not those of record.json")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar, atomic_folder(o.out) as run:
        tar.extractall(run, filter="data")


def third(o: Options) -> None:
    """The plain form of the step against the fastest, 64 and 128 px, and attention, fused and explicit."""
    sys.path.insert(0, str(o.work / "site"))
    common, on_gpu = import_module("common"), import_module("torch").cuda.is_available()
    forms = "plain,bf16,bf16_cuda_graphs" if on_gpu else "plain,bf16"
    cells = []
    for config, *changes in (
        (o.config,),
        ("studio64", "training.batch_size=64"),
        ("mmgen128", "training.batch_size=32"),
    ):
        words = as_options([*changes, "optim.accumulation=1", *o.changes])
        cells.append((config, ["step", config, *words, "--rounds", "2", "--variants", forms, "--json"]))
    for side in (32, 64, 128, 256) if on_gpu else (32,):
        words = ["--names", "self_attention", "--explicit", "--rounds", "3", "--resolution", str(side), "--json"]
        cells.append((f"attention-{side}", ["attention", *words]))
    found, seconds = {}, o.seconds or 90
    for (name, _), row in common.cells_in_processes(run_benchmark, cells, seconds, seconds / 2):
        found[name] = row
        write_json(o.out / "third.json", found)


def run_benchmark(cell: Check) -> Row:
    """The result of a benchmark; runs in a child process."""
    script, *words = cell[1]
    done = import_module("click.testing").CliRunner().invoke(import_module(script).main, words)
    if done.exit_code:
        raise RuntimeError(last_error(done.output) if isinstance(done.exception, SystemExit) else repr(done.exception))
    return json.loads(done.stdout)


def rehearse(o: Options) -> None:
    """Everything on the CPU, with tiny networks and a few hundred images; a damaged half must be refused."""
    given, back = o.out / "pack", o.out / "back"
    tiny = [f"{network}.channels=8" for network in ("generator", "discriminator")]
    shared = ["--work", o.out / "work", *as_options([*tiny, "training.batch_size=4", "data.num_classes=4"])]
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def call(*words: object, code: int = 0) -> None:
        print("gpu.py", *words, flush=True)
        if subprocess.run([sys.executable, __file__, *map(str, words)]).returncode != code:
            raise UserError(f"gpu.py {words[0]}: its exit code is not {code}")

    call("pack", o.sources[0] if o.sources else "shapes:400", "--out", given)
    second = (given / "half-2.npz").read_bytes()
    (given / "half-2.npz").unlink()
    call("first", "--pack", given, "--out", back, "--seconds", 300, "--batch", 4, *shared)
    (given / "half-1.npz").unlink()
    (given / "half-2.npz").write_bytes(second[:5000] + b"damage" + second[5006:])
    call("record", "--pack", given, "--out", back, *shared, code=2)
    (given / "half-2.npz").write_bytes(second)
    call("record", "--pack", given, "--out", back, "--seconds", o.seconds or 120, "--images-per-second", 200, *shared)
    call("restore", back, "--out", o.out / "run")
    call("third", "--out", back, "--seconds", 300, *shared)


def unpack_command(o: Options) -> None:
    unpack([file for folder in o.sources for file in sorted(Path(folder).glob("half-*.npz"))], o.out)


CALLS = {call.__name__: call for call in (pack, first, record, third, restore, rehearse)} | {"unpack": unpack_command}
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(help=__doc__)
@click.argument("call", type=click.Choice([*CALLS]))
@click.argument("sources", nargs=-1)
@click.option("--out", type=FOLDER, required=True)
@click.option("--pack", type=FOLDER, default=Path(), help="Where `pack` has written.")
@click.option("--work", type=FOLDER, default=Path.home() / ".cache/sagan/gpu", help="Kept from one call to the next.")
@click.option("--config", default="cifar10", show_default=True)
@click.option("--set", "changes", multiple=True, metavar="A.B=VALUE", help="Change one setting.")
@click.option("--seconds", type=float, help="Time limit; of record: the end of training, from the start of the call.")
@click.option("--batch", type=int, multiple=True, help="first: sizes; record: the size, rates follow its square root.")
@click.option("--images-per-second", type=float, help="record: a first guess, instead of the rate in first.json.")
@click.option("--wheels", is_flag=True, help="pack: packages for Python 3.12 on Linux, x86-64, too.")
def main(call: str, **options: Any) -> None:
    try:
        CALLS[call](Options(**options))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

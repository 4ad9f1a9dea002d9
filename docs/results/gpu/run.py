"""The plan for one GPU in parts of under ten minutes: throughput, prepare, train-part, evaluate, speed, collect.

Needs only Python and the project (installed, or this checkout). What is done is not done again, so any call may be
repeated. `split` and `join` carry what is too large for one transfer. How to run it all: README.md beside this file.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from parts import join, split
from plan import ROOT, Plan

STEP_VARIANTS = "plain,project,tf32,bf16"


def throughput(plan: Plan) -> int:
    """The training step over batch size and precision; then the compiled step at one cell of it."""
    o = plan.options
    command = ["bench", "throughput", o.config, *sets(o), "--json"]
    grid = [*command, "--batch-sizes", o.batch_sizes, "--precisions", o.precisions]
    out = plan.results / "throughput.jsonl"
    code = plan.sagan(
        *grid, "--out", out, "--seconds", max(plan.left * 0.7, 1), stdout=plan.results / "throughput.json"
    )
    one = ["--batch-sizes", o.batch_sizes.split(",")[0], "--precisions", o.compiled, "--compile", "--out", out]
    if code == 0 and o.compiled:
        limit = max(plan.left - 10, 1)
        code = plan.sagan(*command, *one, "--seconds", limit, "--cell-seconds", limit,
                          stdout=plan.results / "throughput-compiled.json")  # fmt: skip
    return code


def prepare(plan: Plan) -> int:
    """Data and weights that were joined, checked; data that is not prepared is prepared."""
    o = plan.options
    if not (o.data / "manifest.json").is_file():
        source, o.data = o.data, plan.work / "data"
        code = plan.sagan("prepare", source, "--resolution", 32, "--out", o.data, done=o.data / "manifest.json")
        if code:
            return code
    note = {"data": str(o.data.resolve()), "weights": None if o.weights is None else str(o.weights.resolve())}
    if o.weights is not None and not o.weights.is_file():
        print(f"{o.weights}: no such file of weights", file=sys.stderr)
        return 2
    (plan.work / "prepared.json").write_text(json.dumps(note) + "\n")
    print(json.dumps(note))
    return plan.sagan("train", o.config, *sets(o), "--set", f"data.source={json.dumps(note['data'])}", "--dry-run",
                      stdout=plan.results / "network.txt")  # fmt: skip


def train_part(plan: Plan) -> int:
    """Train until the time is up, save, and leave; the next part goes on. The first part decides the steps."""
    o, file = plan.options, plan.work / "steps.json"
    if not file.is_file():
        if o.steps is None:
            print("the first part needs --steps: images/s of the chosen cell x seconds / batch size", file=sys.stderr)
            return 2
        changes = [f"optim.decay_start={o.steps // 4}", *o.set]
        file.write_text(json.dumps({"steps": o.steps, "sets": changes, "config": str(o.config)}) + "\n")
    decided = json.loads(file.read_text())
    changes = [f"data.source={json.dumps(noted(plan)['data'])}", f"training.steps={decided['steps']}", *decided["sets"]]
    code = plan.sagan("train", decided["config"], "--out", plan.work / "run", *with_sets(changes), stop=True)
    stopped = code == 128 + signal.SIGTERM  # saved; -SIGTERM: ended before it trained at all
    log = plan.work / "run" / "log.jsonl"
    last = json.loads(log.read_text().splitlines()[-1]) if log.is_file() and log.stat().st_size else {}
    about = {"part": o.number, "exit": code, "steps": decided["steps"], "logged": last.get("step"),
             "images_per_second": last.get("images_per_second")}  # fmt: skip
    with (plan.results / "parts.jsonl").open("a") as lines:
        lines.write(json.dumps(about) + "\n")
    print("stopped in time; the next part goes on" if stopped else f"part {o.number} ended with {code}", flush=True)
    return 0 if stopped else abs(code)


def evaluate(plan: Plan) -> int:
    """FID on many samples; the same by torch-fidelity on the same files; precision and recall; attention."""
    o, note, run = plan.options, noted(plan), plan.work / "run"
    weights = [] if note["weights"] is None else ["--inception-weights", note["weights"]]
    png = plan.work / "png"
    score = ["evaluate", run, "--reference", note["data"], *weights]
    codes = [
        plan.sagan(*score, "--num", o.num, "--metrics", "fid,kid", "--out", plan.results / "scores.json",
                   done=plan.results / "scores.json"),
        plan.sagan("sample", run, "--out", png, "--num", o.files, done=png / "samples.json"),
        plan.sagan("bench", "evaluate", *weights, "--num", o.bench_num, "--rounds", 3, "--samples", png, "--reference",
                   note["data"], "--json", stdout=plan.results / "bench-evaluate.json"),
        plan.sagan("attend", run, "--out", plan.results / "attention", "--network", "both",
                   done=plan.results / "attention" / "attention.png"),
        plan.sagan(*score, "--num", o.manifold_num, "--metrics", "precision,recall,density,coverage",
                   "--out", plan.results / "manifold.json", done=plan.results / "manifold.json"),
    ]  # fmt: skip
    return max(map(abs, codes))


def speed(plan: Plan) -> int:
    """The step at larger sizes against its plain form; attention with and without its weights formed."""
    o, codes = plan.options, []
    for name, batch in (pair.split(":") for pair in o.presets.split(",")):
        config = ROOT / "configs" / f"{name}.yaml"
        change = ["--set", f"training.batch_size={batch}", "--set", "optim.accumulation=1", *sets(o)]
        codes.append(plan.sagan("bench", "step", config, *change, "--variants", o.variants, "--rounds", o.rounds,
                                "--json", stdout=plan.results / f"step-{name}-{batch}.json"))  # fmt: skip
    for size in o.maps.split(","):
        options = ["--names", "self_attention", "--explicit", "--resolution", size, "--channels", o.channels]
        codes.append(plan.sagan("bench", "attention", *options, "--batch-size", o.map_batch, "--json",
                                stdout=plan.results / f"attention-{size}.json"))  # fmt: skip
    return max(map(abs, codes))


def collect(plan: Plan) -> int:
    """Results, log, sheets and snapshot (or, with --checkpoint, what a run needs to go on) as one group of parts."""
    o, run = plan.options, plan.work / "run"
    sources = {"results": plan.results}
    sources |= {name: plan.work / name for name in ("steps.json",) if (plan.work / name).is_file()}
    own = ("config.yaml", "run.json", "log.jsonl", "metrics.jsonl", "samples")
    sources |= {f"run/{name}": run / name for name in own if (run / name).exists()}
    kind = "checkpoints" if o.checkpoint else "snapshots"
    sources |= {f"run/{kind}/{p.name}": p for p in sorted((run / kind).glob("[0-9]*"))[-1:]}
    groups = split("checkpoint" if o.checkpoint else "results", sources, plan.work / f"out-{kind}")
    chosen = groups[o.group - 1 : o.group] if o.group else groups
    for path in (path for group in chosen for path in sorted(group.iterdir())):
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / path.name).write_bytes(path.read_bytes())
    print(f"{len(groups)} groups; group {o.group or 'all'} is in {o.out}")
    return 0


def noted(plan: Plan) -> dict:
    """What `prepare` found."""
    file = plan.work / "prepared.json"
    if not file.is_file():
        sys.exit("run `prepare` first")
    return json.loads(file.read_text())


def sets(options: argparse.Namespace) -> list[str]:
    return with_sets(options.set)


def with_sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def parser() -> argparse.ArgumentParser:
    """All commands and options; defaults are those of the plan."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, default=Path("runs/gpu"), help="what the calls share")
    p.add_argument("--seconds", type=float, default=540, help="of this call")
    p.add_argument("--grace", type=float, default=45, help="of them, to save a checkpoint in")
    p.add_argument("--config", type=Path, default=ROOT / "configs" / "cifar10-gpu.yaml")
    p.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    commands = p.add_subparsers(dest="command", required=True)

    def command(name: str, /, **options: object) -> None:
        sub = commands.add_parser(name)
        for option, default in options.items():
            kind = str if default is None else type(default)
            sub.add_argument(f"--{option.replace('_', '-')}", type=kind, default=default)

    command("throughput", batch_sizes="256,512,128", precisions="no,tf32,bf16", compiled="bf16")
    command("prepare", data=Path("runs/gpu/in/data"))
    commands.choices["prepare"].add_argument("--weights", type=Path)
    command("train-part")
    commands.choices["train-part"].add_argument("number", type=int)
    commands.choices["train-part"].add_argument("--steps", type=int)
    command("evaluate", num=50_000, files=50_000, bench_num=4096, manifold_num=10_000)
    command("speed", presets="studio64:64,mmgen128:32", variants=STEP_VARIANTS, rounds=3, maps="32,64,128,256",
            channels=64, map_batch=8)  # fmt: skip
    command("collect", out=Path("out"), group=0)
    commands.choices["collect"].add_argument("--checkpoint", action="store_true")
    command("split", name="data", out=Path("parts"), part_bytes=15 << 20, most=3)
    commands.choices["split"].add_argument("source", type=Path)
    command("join", out=Path("runs/gpu/in"))
    commands.choices["join"].add_argument("folders", type=Path, nargs="+")
    return p


def main() -> int:
    """One command; the exit code is 0 when what it was to do is done, or stopped in time."""
    options = parser().parse_args()
    if options.command == "split":
        source = options.source
        inside = {"": source} if source.is_dir() else {source.name: source}
        print(*split(options.name, inside, options.out, options.part_bytes, options.most), sep="\n")
        return 0
    if options.command == "join":
        try:
            print(*join(options.folders, options.out), sep="\n")
        except ValueError as error:
            sys.exit(str(error))
        return 0
    commands = {"throughput": throughput, "prepare": prepare, "train-part": train_part, "evaluate": evaluate,
                "speed": speed, "collect": collect}  # fmt: skip
    return commands[options.command](Plan(options))


if __name__ == "__main__":
    sys.exit(main())

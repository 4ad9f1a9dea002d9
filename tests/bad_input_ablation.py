"""`sagan ablate`, `sagan export` and front-ends, wrongly used, in the folder that bad_input_workspace.py builds."""

import json
import shutil
from pathlib import Path
from typing import Any

from bad_input_cases import TWO_PROCESSES, Case, setting

from sagan.experiments.ablation import RECORD, Ablation, RunRecord, make_plan, merged

VARY = "--vary generator.z_dim=4,8"
SCORED = ("evaluate.every=2", "evaluate.metrics=[coherence]")


def ablate(options: str, says: str, **more: Any) -> Case:
    return Case(f"ablate {options}", says, **more)


def frontend(value: str, says: str) -> Case:
    return setting(f"discriminator.frontend={value}", says)


def again(name: str, says: str, more: str = "") -> Case:
    """The command that made the ablation, with `more`, where another one lies."""
    scored = " ".join(f"--set {text}" for text in SCORED)
    return ablate(f"c.yaml --out {name} {VARY} {scored} {more}", says)


def build_ablations() -> None:
    """`ablation`: planned, nothing trained. The others differ from it; the runs of some are copies of `run`."""
    planned = merged(Path("ablation"), make_plan("c.yaml", ["generator.z_dim=4,8"], None, SCORED))
    planned.save({})
    for name in ("ablation_edited", "ablation_odd"):
        shutil.copytree("ablation", name)
    Path(f"ablation_odd/{RECORD}").write_text("{}")
    edited = Path("ablation_edited/variants/z_dim=4.yaml")
    edited.write_text(edited.read_text().replace("z_dim: 4", "z_dim: 5"))
    for name, score in {"ablation_unscored": {}, "ablation_unlogged": {"step": 2, "coherence": 1.0}}.items():
        runs = {("z_dim=4", 0): RunRecord(variant="z_dim=4", seed=0, state="done")}
        trained = Ablation(Path(name), planned.base, planned.variants, planned.configs, runs)
        trained.save({})
        run = Path(shutil.copytree("run", trained.run_folder(("z_dim=4", 0))))
        (run / "metrics.jsonl").write_text(json.dumps(score))
        (run / "log.jsonl").unlink()


ABLATION = [
    ablate("c.yaml --out out", "--vary: nothing varies"),
    ablate(f"c.yaml {VARY}", "--out: name the folder of the ablation"),
    ablate("c.yaml --out out --vary generator.z_dim", "--vary generator.z_dim: expected KEY=VALUE,VALUE"),
    ablate("c.yaml --out out --vary 'generator.z_dim=[1'", "the values are not readable as YAML"),
    ablate("c.yaml --out out --vary generator.z_dim=", "no value is given"),
    ablate("c.yaml --out out --vary seed=1,2", "--vary seed: use --seeds"),
    ablate("c.yaml --out out --vary evaluate.num=1,2", "--vary evaluate.num: variants must be scored alike"),
    ablate(f"c.yaml --out out {VARY} {VARY}", "is varied twice"),
    ablate("c.yaml --out out --vary generator.z_dim=4,4", "comes twice"),
    ablate(f"c.yaml --out out {VARY}", "evaluates nothing"),
    ablate(f"c.yaml --out src {VARY} --set evaluate.every=1 --set evaluate.metrics=[coherence]", "src: is no ablation"),
    ablate("src", "src: no ablation, it has no ablation.json"),
    ablate(f"c.yaml --out out {VARY} --jobs 2 --devices 0", "--jobs and --devices exclude each other"),
    ablate(f"c.yaml --out out {VARY} --devices 0,,1", "--devices 0,,1: expected GPUs"),
    ablate(f"c.yaml --out out {VARY} --devices 0,0", "--devices 0,0: one is given twice"),
    ablate(f"c.yaml --out out {VARY}", "ablate starts its runs itself; start it without", environment=TWO_PROCESSES),
    ablate("ablation --out out", "--out: ablation is an ablation, which is only shown; to continue it name its config"),
    ablate("ablation_odd", "ablation_odd/ablation.json: is not the record of an ablation (config: field required)"),
    ablate("ablation_unscored", "metrics.jsonl: has no scores of the last step, 2; remove ablation_unscored/runs/"),
    ablate("ablation_unlogged", "log.jsonl: is missing or damaged; remove ablation_unlogged/runs/z_dim=4-seed0 and"),
    again("ablation_edited", "ablation_edited: has another variant z_dim=4; name a new folder with --out"),
    again("ablation", "ablation: holds an ablation of another config (loss.r1: ", "--set loss.r1=2"),
    ablate(
        "c.yaml --out ablation --vary loss.r1=0,1 --set evaluate.every=1 --set evaluate.metrics=[coherence]",
        "ablation: holds an ablation of generator.z_dim, not of loss.r1; name a new folder",
    ),
    again("out", "are the same settings; leave one out", "--vary loss.r1=0,0.0"),
    again("out", "variant z_dim=4+resolution=48: c.yaml: data: resolution 48 is not", "--vary data.resolution=32,48"),
]
EXPORT = [
    Case("export snapshot --out g.bin", "--out g.bin: name a .onnx or a .pt2 file"),
    Case("export snapshot --out g.onnx --format torch", "--out g.onnx: a .onnx file is not --format torch"),
    Case("export snapshot --out g.pt2 --opset 18", "--opset 18: a .pt2 file has none"),
    Case("export nope --out g.onnx", "nope: no such folder"),
    Case("export snapshot --out src", "--out src: name a .onnx or a .pt2 file"),
    Case("export snapshot --out g.onnx --opset 17", "17 is not in the range 18<=x<=25"),
    Case("export snapshot --out images/folder.onnx", "images/folder.onnx: is a folder; name a file"),
    Case("export snapshot --out a_file/g.onnx", "a_file/g.onnx: cannot be written, "),
    Case("export snapshot_other_kind --out g.pt2", "not a snapshot of this project"),
]
FRONT_ENDS = [
    frontend("zom", "unknown front-end 'zom'; known: coarse_to_fine, zoom"),
    frontend("{scales: 3}", "its name is missing; known: coarse_to_fine, zoom"),
    frontend("{name: zoom, patches: 3}", "zoom has no option 'patches'; known: scales"),
    frontend("{name: coarse_to_fine, cells: 5}", "coarse_to_fine has no map of 5x5 cells at resolution 32; known:"),
    frontend("{name: coarse_to_fine, patches: 64}", "coarse_to_fine takes 64 patches of 8x8 cells: at most 63"),
    frontend("{name: coarse_to_fine, patch: 32}", "coarse_to_fine cuts patches of 32 pixels: they must be smaller"),
    frontend("{name: coarse_to_fine, cells: 16}", "attention at 8x8: the coarse trunk ends at 16x16"),
    frontend("{name: zoom, size: 9}", "zoom enlarges to 9 pixels: its trunk halves them 2 times"),
]

"""`sagan ablate`, `sagan export` and front-ends, wrongly used, in the folder that bad_input_workspace.py builds."""

from typing import Any

from bad_input_cases import Case, setting

VARY = "--vary generator.z_dim=4,8"


def ablate(options: str, says: str, **more: Any) -> Case:
    return Case(f"ablate {options}", says, **more)


def frontend(value: str, says: str) -> Case:
    return setting(f"discriminator.frontend={value}", says)


ABLATION = [
    ablate("c.yaml --out out", "--vary: nothing varies"),
    ablate(f"c.yaml {VARY}", "--out: say in which folder"),
    ablate("c.yaml --out out --vary generator.z_dim", "--vary generator.z_dim: expected KEY=VALUE,VALUE"),
    ablate("c.yaml --out out --vary 'generator.z_dim=[1'", "the values are not readable as YAML"),
    ablate("c.yaml --out out --vary generator.z_dim=", "no value is given"),
    ablate("c.yaml --out out --vary seed=1,2", "--vary seed: is what --seeds is for"),
    ablate("c.yaml --out out --vary evaluate.num=1,2", "--vary evaluate.num: variants must be scored alike"),
    ablate(f"c.yaml --out out {VARY} {VARY}", "is varied twice"),
    ablate("c.yaml --out out --vary generator.z_dim=4,4", "comes twice"),
    ablate(f"c.yaml --out out {VARY}", "evaluates nothing"),
    ablate(f"c.yaml --out src {VARY} --set evaluate.every=1 --set evaluate.metrics=[coherence]", "src: is no ablation"),
    ablate("src", "src: no ablation, it has no ablation.json"),
    ablate(f"c.yaml --out out {VARY} --jobs 2 --devices 0", "--jobs and --devices exclude each other"),
    ablate(f"c.yaml --out out {VARY} --devices 0,,1", "--devices 0,,1: expected GPUs"),
]
EXPORT = [
    Case("export snapshot --out g.bin", "--out g.bin: name a .onnx or a .pt2 file"),
    Case("export snapshot --out g.onnx --format torch", "--format torch is written to a .pt2 file"),
    Case("export snapshot --out g.pt2 --opset 18", "--opset 18: a .pt2 file has none"),
    Case("export nope --out g.onnx", "nope: no such folder", late=True),
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

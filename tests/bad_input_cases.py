"""Commands that must be refused, with what must be said. They meet the folder that bad_input_workspace.py builds."""

import sys
from dataclasses import dataclass
from typing import Any

ABSENT = "cuda" if sys.platform == "darwin" else "mps"  # a device that this machine cannot have
LONG = "x" * 300
TWO_PROCESSES = (("WORLD_SIZE", "2"), ("RANK", "0"))


@dataclass(frozen=True)
class Case:
    """A command, and words that its message must hold.

    `began`: what was written until then stays. `limit`: bytes a file may have.
    `environment`: as a launcher sets it.
    """

    command: str
    says: str
    began: bool = False
    limit: int | None = None
    environment: tuple[tuple[str, str], ...] = ()


def train(options: str, says: str, **more: Any) -> Case:
    return Case(f"train c.yaml --out out {options}", says, **more)


def setting(text: str, says: str, **more: Any) -> Case:
    return train(f"--set '{text}'", says, **more)


def config(path: str, says: str) -> Case:
    return Case(f"train {path} --out out", says)


COMMAND_LINE = [
    Case("trian", "No such command 'trian'"),
    Case("train", "Missing argument 'CONFIG'"),
    Case("train c.yaml", "Missing option '--out'"),
    Case("train c.yaml --outt out", "No such option"),
    Case("train c.yaml --out ''", "Invalid value for '--out': it is empty"),
    train("--init-from ''", "Invalid value for '--init-from': it is empty"),
    train("--device gpu", "'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
    Case("sample snapshot --out out --num many", "'many' is not a valid integer"),
]

CONFIGS = [
    config("nope.yaml", "nope.yaml: no such config file"),
    config("shape32", "shape32: no such config file; did you mean shapes32?"),
    Case("configs nope", "nope: no such config file; `sagan configs` lists"),
    config("data", "data: not readable: "),
    config(f"{LONG}.yaml", "not readable: "),
    config("a_file/c.yaml", "a_file/c.yaml: not readable: "),
    config("bad/latin.yaml", "bad/latin.yaml: not readable: "),
    config("bad/list.yaml", "a config is a mapping of settings, this is a list"),
    config("bad/text.yaml", "a config is a mapping of settings, this is a str"),
    config("data/images.npy", "not readable"),
    *(
        config(f"bad/{name}.yaml", f"bad/{name}.yaml: not readable as YAML: ")
        for name in ("bracket", "tag", "nul", "date", "long_number")
    ),
    config("bad/huge.yaml", "bad/huge.yaml: holds more than 256 KiB of text"),
    setting('data.source="a\\0b"', "data.source holds a NUL or half a character, which no path or name has"),
    config("bad/loop.yaml", "bad/loop.yaml: a setting contains itself"),
    config("bad/number_key.yaml", "1: keys should be strings, not 1"),
    setting("training.stepz=3", "unknown setting training.stepz; did you mean training.steps?"),
    setting("generater.channels=3", "unknown setting generater; did you mean generator?"),
    setting("color.jitter=1", "unknown setting color; known: seed, deterministic, data"),
    setting("training.steps=many", "training.steps: input should be a valid integer"),
    setting("training.steps=-1", "training.steps: input should be greater than 0, not -1"),
    setting("seed=1.5", "seed: input should be a valid integer"),
    setting("seed=[1]", "seed: input should be a valid integer, not [1]"),
    setting("training=3", "training: input should be a valid dictionary"),
    setting("training.compile=maybe", "training.compile: input should be a valid boolean"),
    setting("optim.generator.lr=.inf", "optim.generator.lr: input should be a finite number, not inf"),
    setting("generator.norm_eps=.nan", "generator.norm_eps: input should be a finite number, not nan"),
    setting("loss.name=hing", "loss.name: input should be 'hinge', 'non_saturating' or 'wasserstein', not 'hing'"),
    setting("augment.policy=[colr]", "augment.policy.0: input should be 'color', 'translation' or 'cutout'"),
    setting("data.source=[1]", "data.source: input should be a valid string, not [1]"),
    setting('data.source=""', "data.source: string should have at least 1 character"),
    setting("training.device=gpu", "training.device: input should be 'auto', 'cpu', 'cuda' or 'mps', not 'gpu'"),
    setting("generator.attention=self_attention", "generator.attention: input should be a valid dictionary"),
    setting("generator.attention.16={}", "generator.attention.16.name: field required"),
    setting("generator.attention.8.place=behind", "input should be 'after', 'branch' or 'conv', not 'behind'"),
    setting("training.steps", "--set training.steps: expected NAME=VALUE, such as training.steps=1000"),
    setting("=3", "--set =3: expected NAME=VALUE"),
    setting("training.steps=[", "--set training.steps=[: the value is not readable as YAML"),
    setting("training.steps.more=3", "--set training.steps.more: training.steps is not a group of settings"),
    setting("data.resolution=48", "resolution 48 is not one of 32, 64, 128, 256"),
    setting("data.resolution=big", "data.resolution: input should be a valid integer"),
    setting("generator.attention.64=self_attention", "no block outputs 64x64 at resolution 32; known: 8, 16, 32"),
    setting("discriminator.attention.32=self_attention", "no block outputs 32x32 at resolution 32; known: 16, 8"),
    setting("generator.widths=[1]", "generator.widths needs 4 numbers at resolution 32, has 1"),
    setting("optim.accumulation=3", "training.batch_size 4 is not divisible by optim.accumulation 3"),
    setting("ema={decay: 0.5, half_life: 10}", "give decay or half_life, not both"),
    setting("ema={decay: 0.5, ramp: 0.1}", "ramp bounds half_life and would be ignored beside decay; leave one"),
    train("--set training.cuda_graphs=true", "training.cuda_graphs records what training.compile makes"),
    train("--set training.compile=true --set loss.r1=1", "training.compile and loss.r1 exclude each other"),
    train(
        "--set training.compile=true --set training.activation_checkpointing=true", "checkpointing exclude each other"
    ),
    Case("train nope.yaml --dry-run", "nope.yaml: no such config file"),
    Case("train c.yaml --dry-run --set data.source=nope", "nope: no such folder or file"),
    Case("train c.yaml --dry-run --set generator.attention.16=self", "unknown attention 'self'"),
]

MACHINE_AND_NETWORKS = [
    train("", "batch_size 4 is not divisible by 3 processes x", environment=(("WORLD_SIZE", "3"), ("RANK", "0"))),
    train(f"--device {ABSENT}", "training.device: this machine has no"),
    setting("training.precision=fp16", "training.precision: fp16 needs a CUDA device; use bf16 or no"),
    setting("training.trackers=[nope]", "training.trackers: nope is unknown or not installed; available: "),
    setting("generator.attention.16=self", "unknown attention 'self'; known: self_attention"),
    setting("generator.attention.8.pol=2", "self_attention has no option 'pol'; known: pool"),
    setting("generator.attention.8.pool=many", "self_attention: pool is 'many', expected something like"),
    setting("generator.attention.8.pool=[1]", "pool is [1], expected "),
    setting("generator.attention.8.pool=!!binary /w==", "option pool is b'\\xff', expected a number"),
    setting("generator.attention.8.pool=&x [*x]", "option pool is [[...]], expected a number"),
    setting("generator.widths=[1,1,1,1]", "self_attention: 2 channels are too few"),
    train("--init-from nope/nope/nope", "nope/nope/nope: no such folder, and not to be had from the Hub"),
    train("--init-from src", "src: not a snapshot, it has no config.json"),
    train("--init-from a_file", "a snapshot is a folder with config.json and model.safetensors, this is"),
    train("--init-from run_cut_checkpoint", "this run has no whole checkpoint"),
    train("--init-from run --set generator.channels=4", "has shape"),
    train("--init-from snapshot --set generator.channels=4", "has shape"),
    train("--init-from run --set discriminator.channels=4", "has shape"),
    setting("optim.generator.lr=1e30", "stopped, the last checkpoint is from an earlier step", began=True),
    train(
        "--init-from snapshot --set data.resolution=64 --set data.source=data_64",
        "norm1.gain.weight is missing",
    ),
    train("--init-from snapshot_truncated", "missing, damaged, or not a safetensors file"),
]

CASES = [*COMMAND_LINE, *CONFIGS, *MACHINE_AND_NETWORKS]

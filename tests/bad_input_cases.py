"""Commands that must be refused, with what must be said. They meet the folder that bad_input_workspace.py builds."""

import sys
from dataclasses import dataclass
from typing import Any

ABSENT = "cuda" if sys.platform == "darwin" else "mps"  # a device that this machine cannot have
LONG = "x" * 300


@dataclass(frozen=True)
class Case:
    """A command, and words that its message must hold.

    `late`: known only when torch is there. `began`: what was written until then stays. `limit`: bytes a file may have.
    `environment`: as a launcher sets it.
    """

    command: str
    says: str
    late: bool = False
    began: bool = False
    limit: int | None = None
    environment: tuple[tuple[str, str], ...] = ()


def train(options: str, says: str, **more: Any) -> Case:
    return Case(f"train c.yaml --out out {options}", says, **more)


def setting(text: str, says: str, **more: Any) -> Case:
    return train(f"--set '{text}'", says, **more)


def config(path: str, says: str) -> Case:
    return Case(f"train {path} --out out", says)


def source(path: str, says: str, **more: Any) -> Case:
    return setting(f"data.source={path}", says, **more)


def prepare(options: str, says: str, **more: Any) -> Case:
    return Case(f"prepare {options} --resolution 32", says, **more)


def run(options: str, says: str, **more: Any) -> Case:
    return Case(f"train {options}", says, **more)


def sample(options: str, says: str, **more: Any) -> Case:
    return Case(f"sample {options} --out out", says, **more)


def snapshot(name: str, says: str) -> Case:
    return Case(f"sample {name} --out out --num 2", says, late=True)


COMMAND_LINE = [
    Case("trian", "No such command 'trian'"),
    Case("train", "Missing argument 'CONFIG'"),
    Case("train c.yaml", "Missing option '--out'"),
    Case("train c.yaml --outt out", "No such option"),
    Case("train c.yaml --out ''", "Invalid value for '--out': it is empty"),
    train("--init-from ''", "Invalid value for '--init-from': it is empty"),
    train("--device gpu", "'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
    sample("snapshot --num many", "'many' is not a valid integer"),
    Case("bench step --variants fast", "unknown variant 'fast'; known: plain, project"),
    Case("bench step --set x=1", "unknown setting x; known: seed, deterministic, data"),
    Case("bench step --rounds 0", "0 is not in the range x>=1"),
]

CONFIGS = [
    config("nope.yaml", "nope.yaml: no such config file"),
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
    train("--set training.compile=true --set loss.r1=1", "training.compile and loss.r1 exclude each other"),
    Case("train nope.yaml --dry-run", "nope.yaml: no such config file"),
    Case("train c.yaml --dry-run --set data.source=nope", "nope: no such folder or file"),
    Case("train c.yaml --dry-run --set generator.attention.16=self", "unknown attention 'self'", late=True),
]

MACHINE_AND_NETWORKS = [
    train("", "batch_size 4 is not divisible by 3 processes x", environment=(("WORLD_SIZE", "3"), ("RANK", "0"))),
    train(f"--device {ABSENT}", f"training.device: {ABSENT} was asked for, this machine has no", late=True),
    setting("training.precision=fp16", "training.precision: fp16 needs a CUDA device; use bf16 or no", late=True),
    setting("training.trackers=[nope]", "training.trackers: nope is unknown or not installed; available: ", late=True),
    setting("generator.attention.16=self", "unknown attention 'self'; known: self_attention", late=True),
    setting("generator.attention.8.pol=2", "self_attention has no option 'pol'; known: pool", late=True),
    setting("generator.attention.8.pool=many", "self_attention: pool is 'many', expected something like", late=True),
    setting("generator.attention.8.pool=[1]", "pool is [1], expected ", late=True),
    setting("generator.attention.8.pool=!!binary /w==", "option pool is b'\\xff', expected a number"),
    setting("generator.attention.8.pool=&x [*x]", "option pool is [[...]], expected a number"),
    setting("generator.widths=[1,1,1,1]", "self_attention: 2 channels are too few", late=True),
    train("--init-from nope/nope/nope", "nope/nope/nope: no such folder, and not to be had from the Hub", late=True),
    train("--init-from src", "src: not a snapshot, it has no config.json", late=True),
    train("--init-from a_file", "a snapshot is a folder with config.json and model.safetensors, this is", late=True),
    train("--init-from run_cut_checkpoint", "this run has no whole checkpoint", late=True),
    train("--init-from run --set generator.channels=4", "has shape", late=True),
    train("--init-from snapshot --set generator.channels=4", "has shape", late=True),
    train("--init-from run --set discriminator.channels=4", "has shape", late=True),
    setting("optim.generator.lr=1e30", "stopped, the last checkpoint is from before", late=True, began=True),
    train(
        "--init-from snapshot --set data.resolution=64 --set data.source=data_64",
        "norm1.gain.weight is missing",
        late=True,
    ),
    train("--init-from snapshot_truncated", "missing, damaged, or not a safetensors file", late=True),
]

SOURCES = [
    source("null", "data.source is not set: give a folder"),
    source("nope", "nope: no such folder or file"),
    source(LONG, "a name as long as this cannot be used"),
    source("a_file", "a_file: a file that is no .npz; give a folder"),
    source("src/archive.zip", "a file that is no .npz; unpack it and give the folder"),
    source("src/empty", "src/empty: holds no image; images end in .bmp"),
    source("src/words", "src/words: holds no image (but 1 other files: read.me)"),
    source("src/one_class", "holds one class folder only, a; to train without labels give src/one_class/a"),
    source("src/deep", "its class folders lie deeper than one level; the source to give is src/deep/a"),
    source("src/beside", "holds images (1.png) beside folders with images (a)"),
    source("src/splits", "test, train are splits, not classes; give one of them"),
    source("src/hole", "1 are empty classes: c"),
    source("src/noise", "1 do not decode: b/2.png"),
    source("src/clear", "1 are transparent: a/1.png"),
    source("shapes:0", "expected shapes:COUNT with a positive number of images"),
    source("torchvision:cifar11", "no such data set; did you mean cifar10?"),
    source("src/broken.npz", "src/broken.npz: not readable as .npz"),
    source("src/nameless.npz", "holds no array `images`, only x"),
    source("src/float.npz", "images is float64 (2, 40, 40, 3), expected uint8"),
    source("src/odd_labels.npz", "labels is int64 (3,), expected one integer an image: (2,)"),
    source("src/high_labels.npz", "labels go from 0 to 9; with 2 images, 0 to 1 at most"),
    source("src/one_label.npz", "all labels are the same; leave `labels` out"),
    source("src/none.npz", "images is empty, its shape is (0, 40, 40, 3)"),
    source("src/fortran.npz", "images is stored in Fortran order; save np.ascontiguousarray(images)"),
    source("src/no_array.npz", "images is not a NumPy array"),
    source("src/short.npz", "images claims shape (2, 40, 40, 3) uint8, which does not fit its 328 bytes"),
    source("src/pickle.npz", "images holds Python objects, which are not read"),
    source("src/names.npz", "class_names is <U1 (1,), expected 2 strings"),
    source("data_truncated", "data_truncated/images.npy: missing, truncated or damaged"),
    source("data_resized", "the manifest says uint8 (64, 32, 32, 3); prepare it again"),
    source("data_relabelled", "its labels are not those of the manifest"),
    source("data_newer", "its format is 99, this version of sagan reads 1; prepare it again"),
    source("data_odd", "not a manifest of prepared data (count: "),
    source("data_json", "data_json/manifest.json: not readable as JSON"),
    setting("data.resolution=64", "data: prepared at 32x32, data.resolution is 64"),
    setting("data.num_classes=7", "data.num_classes is 7, but data has 4 classes; null takes it from the data"),
    train("--set data.source=shapes:8 --set data.num_classes=7", "but shapes:8 has 4 classes"),
    prepare("data --out out", "data: is prepared data already"),
    prepare("src/pair --out src/pair/out", "lies within the source; choose a folder outside of it"),
    prepare("src/bad --out out --skip-bad", "no image is left, all 2 cannot be used"),
    prepare("src/half --out out --skip-bad", "only one class is left, a"),
    prepare("src/pair --out pair_data", "the files of pair have changed since; remove it or choose another folder"),
    prepare("torchvision:lsun --out out", "lsun: could not find (torchvision does not download it)", late=True),
    prepare("shapes:8 --out samples", "samples: exists and is not prepared data; choose another folder"),
    prepare("shapes:8 --out data", "was prepared with source shapes:64, not shapes:8; remove it or choose another"),
    prepare("shapes:8 --out a_file/out", "a_file: is a file, a folder was expected"),
    prepare(f"shapes:8 --out {LONG}", "a name as long as this cannot be used"),
    prepare("shapes:1000000000000 --out out", "GB are needed, "),
    prepare("shapes:64 --out out", "the disk is full", limit=20_000),
    Case("prepare shapes:8 --out out --resolution 33", "resolution 33 is not one of 32, 64, 128, 256"),
]

NOT_WRITABLE = [  # by anybody, root included
    run("c.yaml --out /proc/out", "/proc/out: cannot be created, its parent is not a folder", late=True),
    run("c.yaml --out /sys/out", "/sys/out: no permission to ", late=True),
    prepare("shapes:8 --out /sys/out", "/sys: not writable ("),
    Case("sample snapshot --num 2 --out /sys/out", "/sys/out: no permission to ", late=True),
] if sys.platform == "linux" else []  # fmt: skip

RUNS = [
    run("c.yaml --out run --set seed=1", "run: was made with other settings; name a new folder with --out, or undo:"),
    run("c.yaml --out run --set seed=1", "  seed: 0 in the run, 1 now"),
    run("c.yaml --out run --set training.steps=1", "  training.steps: 2 in the run, 1 now"),
    run("wide.yaml --out run", "  generator.channels: 2 in the run, 4 now"),
    run("wide.yaml --out run_wide --set training.steps=4", "this network needs ", late=True),
    run("c.yaml --out run_cut_checkpoint --set training.steps=4", "no whole checkpoint is left, begin anew", late=True),
    run("c.yaml --out run_other_data", "was trained on other data"),
    run("c.yaml --out run_no_record", "run_no_record/run.json: missing or damaged"),
    run("c.yaml --out run_list_record", "run_list_record/run.json: missing or damaged"),
    run("c.yaml --out run_cut_record", "run_cut_record/run.json: not readable as JSON"),
    run("c.yaml --out run_locked --set training.steps=4", "run_locked: another process is training", late=True),
    run("c.yaml --out samples", "samples: is not a run and not empty (it holds samples.json); name a new folder"),
    run("c.yaml --out a_file", "a_file: is a file, "),
    run("c.yaml --out a_file/out", "a_file/out: cannot be created, its parent is not a folder"),
    *NOT_WRITABLE,
    run(f"c.yaml --out {LONG}", "a name as long as this cannot be used"),
]

SNAPSHOTS = [
    snapshot("run/nope", "run/nope: no such snapshot or run in run"),
    snapshot("nope/nope/nope", "nope/nope/nope: no such folder, and not to be had from the Hub"),
    snapshot("src", "src: not a snapshot, it has no config.json"),
    snapshot(f"run/checkpoints/{2:08d}", "not a snapshot, it has no config.json"),
    snapshot("a_file", "a snapshot is a folder with config.json and model.safetensors, this is a file"),
    snapshot("run_no_snapshot", "run_no_snapshot/snapshots: no snapshot yet"),
    snapshot(LONG, "a name as long as this cannot be used"),
    snapshot("snapshot_truncated", "model.safetensors: missing, damaged, or not a safetensors file"),
    snapshot("snapshot_emptied", "model.safetensors: missing, damaged, or not a safetensors file"),
    snapshot("snapshot_other_weights", "model.safetensors: missing, damaged, or not a safetensors file"),
    snapshot("snapshot_weightless", "not a snapshot, it has no model.safetensors"),
    snapshot("snapshot_other_kind", "not a snapshot of this project (format None, expected 'sagan-generator-1')"),
    snapshot("snapshot_list", "not a snapshot of this project (format 'list'"),
    snapshot("snapshot_cut_config", "snapshot_cut_config/config.json: not readable as JSON"),
    snapshot("snapshot_no_generator", "its config.json does not describe a generator"),
    snapshot("snapshot_resolution", "its config.json does not describe a generator"),
    snapshot("snapshot_minus_classes", "its config.json does not describe a generator"),
    snapshot("snapshot_classes", "has shape (4, 8), this network needs (7, 8)"),
    snapshot("snapshot_reshaped", "conv.bias has shape (2,), this network needs (3,)"),
    snapshot("snapshot_without_one", "tensor conv.bias is missing (1 in all)"),
    snapshot("snapshot_with_more", "tensor more is not part of this network (1 in all)"),
    snapshot("snapshot_nan", "conv.bias holds values that are not finite"),
]

SAMPLING = [
    sample("snapshot", "give --seeds (such as 0-63) or --num, one of them"),
    sample("snapshot --seeds 1 --num 2", "give --seeds (such as 0-63) or --num, one of them"),
    sample("snapshot --num -1", "--num -1: expected at least 1"),
    sample("snapshot --num 0", "--num 0: expected at least 1"),
    *(
        sample(f"snapshot --seeds '{seeds}'", "expected numbers and ranges, such as 0-63 or 1,3,8-15")
        for seeds in ("", "a", "1-", "-1", "1..5", "1,,2", "0x10", "1e3", "٣")
    ),
    sample("snapshot --seeds 5-2", "--seeds 5-2: a range goes up, such as 2-5"),
    sample("snapshot --seeds 0-9,3", "--seeds: 3 is given twice"),
    sample("snapshot --seeds 100000000", "--seeds 100000000: the highest seed is 99999999"),
    *(
        sample(f"snapshot --num 1 --truncation {value}", "expected a positive number, such as 0.7")
        for value in ("0", "-1", "nan", "inf")
    ),
    sample("snapshot --num 1 --interpolate 0 1", "--interpolate goes with none of --seeds, --num, --grid and --npz"),
    sample("snapshot --interpolate -1 2", "--interpolate -1 2: seeds are 0 to 99999999"),
    sample("snapshot --interpolate 0 100000000", "--interpolate 0 100000000: seeds are 0 to 99999999"),
    Case("sample snapshot --out out --interpolate 0", "Option '--interpolate' requires 2 arguments"),
    sample("snapshot --interpolate 0 1 --frames 1", "--frames 1: expected at least 2"),
    sample("snapshot --interpolate 0 1 --classes 0-2", "goes between two classes, not 3", late=True),
    sample("snapshot --num 2 --classes 4", "--classes 4: this snapshot has the classes 0 to 3", late=True),
    sample("snapshot --num 2 --classes crss", "--classes crss: no such class; did you mean cross?", late=True),
    sample("snapshot --num 2 --classes dog", "no such class; known: disc, square, triangle, cross", late=True),
    sample("snapshot --num 2 --classes 0,disc", "--classes: 0 is given twice", late=True),
    sample("snapshot --num 2 --classes ''", "no such class", late=True),
    sample("run_unconditional --num 2 --classes 0", "--classes: this snapshot has no classes", late=True),
    sample(f"snapshot --num 2 --device {ABSENT}", f"--device {ABSENT}: not available here", late=True),
    sample("snapshot --num 5000 --grid", "--grid: 5000 images are too many for one sheet, at most 4096", late=True),
    sample("snapshot --num 2 --npz", "--npz is written by one process", late=True, environment=(("WORLD_SIZE", "2"),)),
    Case("sample snapshot --num 2 --truncation 0.5 --out samples", "holds samples of something else", late=True),
    Case("sample snapshot --num 2 --out samples_unknown", "is there without samples.json", late=True),
    Case("sample snapshot --num 2 --grid --out samples_broken", "00001.png: not readable as an image", late=True),
    Case("sample snapshot --num 2 --npz --out samples_broken", "samples.npz: not readable as samples", late=True),
    Case("sample snapshot --num 3 --npz --out samples_npz", "holds other seeds or classes", late=True),
    Case("sample snapshot --num 2 --out a_file", "a_file: is a file, a folder was expected", late=True),
]

CASES = [*COMMAND_LINE, *CONFIGS, *MACHINE_AND_NETWORKS, *SOURCES, *RUNS, *SNAPSHOTS, *SAMPLING]

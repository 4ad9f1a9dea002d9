"""Unusable snapshots and wrong uses of `sagan sample`, in the folder that bad_input_workspace.py builds."""

from typing import Any

from bad_input_cases import ABSENT, LONG, Case


def sample(options: str, says: str, **more: Any) -> Case:
    return Case(f"sample {options} --out out", says, **more)


def snapshot(name: str, says: str) -> Case:
    return Case(f"sample {name} --out out --num 2", says)


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
    snapshot("snapshot_other_kind", "not a snapshot of this project (format "),
    snapshot("snapshot_list", "not a snapshot of this project (format 'list'"),
    snapshot("snapshot_cut_config", "snapshot_cut_config/config.json: not readable as JSON"),
    snapshot("snapshot_no_generator", "its config.json does not describe a generator"),
    snapshot("snapshot_resolution", "its config.json does not describe a generator"),
    snapshot("snapshot_minus_classes", "its config.json does not describe a generator"),
    snapshot("snapshot_classes", "has shape (4, 8), this network needs (7, 8)"),
    snapshot("snapshot_reshaped", "conv.bias has shape (2,), this network needs (3,)"),
    snapshot("snapshot_without_one", "tensor conv.bias is missing (1 in all)"),
    snapshot("snapshot_with_more", "tensor more is not part of this network (1 in all)"),
    snapshot("snapshot_whole_numbers", "conv.bias holds torch.int64 values, this network needs torch.float32"),
    snapshot("snapshot_odd_names", "config.json: class_names is no list of printable names"),
    snapshot("snapshot_few_names", "config.json: 1 class_names for 4 classes"),
    snapshot("snapshot_nan", "conv.bias holds values that are not finite"),
]

DRAWING = [
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
    Case(
        "sample snapshot --out x --seeds 0-49999999,60000000-99999999",
        "--seeds: over 10000000 numbers are too many for a list",
    ),
    Case("sample snapshot --out x --seeds 0-9999999 --classes 0,1", "20000000 images are too many for one folder"),
    Case("sample snapshot --out out --interpolate 0", "Option '--interpolate' requires 2 arguments"),
    sample("snapshot --interpolate 0 1 --frames 1", "--frames 1: expected at least 2"),
    sample("snapshot --interpolate 0 1 --classes 0-2", "goes between two classes, not 3"),
    sample("snapshot --num 2 --classes 4", "--classes 4: this snapshot has the classes 0 to 3"),
    sample("snapshot --num 2 --classes crss", "--classes crss: no such class; did you mean cross?"),
    sample("snapshot --num 2 --classes dog", "no such class; known: disc, square, triangle, cross"),
    sample("snapshot --num 2 --classes 0,disc", "--classes: 0 is given twice"),
    sample("snapshot --num 2 --classes ''", "no such class"),
    sample("run_unconditional --num 2 --classes 0", "--classes: this snapshot has no classes"),
    sample(f"snapshot --num 2 --device {ABSENT}", f"--device {ABSENT}: not available here"),
    sample("snapshot --num 5000 --grid", "--grid: 5000 images are too many for one grid, at most 4096"),
    sample("snapshot --num 2 --npz", "--npz works with one process only", environment=(("WORLD_SIZE", "2"),)),
    Case("sample snapshot --num 2 --truncation 0.5 --out samples", "holds samples made with other settings"),
    Case("sample snapshot --num 2 --out samples_unknown", "exists without samples.json"),
    Case("sample snapshot --num 2 --grid --out samples_broken", "00001.png: not readable as an image"),
    Case("sample snapshot --num 2 --npz --out samples_broken", "samples.npz: not readable as samples"),
    Case("sample snapshot --num 3 --npz --out samples_npz", "holds other seeds or classes"),
    Case("sample snapshot --num 2 --out a_file", "a_file: is a file, a folder was expected"),
]

SAMPLING = [*SNAPSHOTS, *DRAWING]

"""Data and folders that cannot be used. They meet what bad_input_workspace.py builds."""

import sys
from typing import Any

from bad_input_cases import LONG, Case, setting, train


def source(path: str, says: str, **more: Any) -> Case:
    return setting(f"data.source={path}", says, **more)


def prepare(options: str, says: str, **more: Any) -> Case:
    return Case(f"prepare {options} --resolution 32", says, **more)


def run(options: str, says: str, **more: Any) -> Case:
    return Case(f"train {options}", says, **more)


SOURCES = [
    source("null", "data.source is not set: give a folder"),
    source("nope", "nope: no such folder or file"),
    source("~nobody_here/x", "~nobody_here/x: no such user here, so no such home folder; write the path out"),
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
    source("src/trap.npz", "which is taken for a trap; save it by np.savez"),
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
    prepare("torchvision:lsun --out out", "lsun: could not find (torchvision does not download it)"),
    prepare("shapes:8 --out samples", "samples: exists and is not prepared data; choose another folder"),
    prepare("shapes:8 --out data", "was prepared with source shapes:64, not shapes:8; remove it or choose another"),
    prepare("shapes:8 --out a_file/out", "a_file: is a file, a folder was expected"),
    prepare(f"shapes:8 --out {LONG}", "a name as long as this cannot be used"),
    prepare("shapes:1000000000000 --out out", "GB are needed, "),
    prepare("shapes:64 --out out", "the disk is full", limit=20_000),
    Case("prepare shapes:8 --out out --resolution 33", "resolution 33 is not one of 32, 64, 128, 256"),
]

NOT_WRITABLE = [  # by anybody, root included
    run("c.yaml --out /proc/out", "/proc/out: cannot be created, its parent is not a folder"),
    run("c.yaml --out /sys/out", "/sys/out: no permission to "),
    prepare("shapes:8 --out /sys/out", "/sys: not writable ("),
    Case("sample snapshot --num 2 --out /sys/out", "/sys/out: no permission to "),
] if sys.platform == "linux" else []  # fmt: skip

RUNS = [
    run("c.yaml --out run --set seed=1", "run: was made with other settings; name a new folder with --out, or undo:"),
    run("c.yaml --out run --set seed=1", "  seed: 0 in the run, 1 now"),
    run("c.yaml --out run --set training.steps=1", "  training.steps: 2 in the run, 1 now"),
    run("wide.yaml --out run", "  generator.channels: 2 in the run, 4 now"),
    run("wide.yaml --out run_wide --set training.steps=4", "this network needs "),
    run("c.yaml --out run_cut_checkpoint --set training.steps=4", "no intact checkpoint is left"),
    run("c.yaml --out run_other_data", "was trained on other data"),
    run("c.yaml --out run_no_record", "run_no_record/run.json: missing or damaged"),
    run("c.yaml --out run_list_record", "run_list_record/run.json: missing or damaged"),
    run("c.yaml --out run_cut_record", "run_cut_record/run.json: not readable as JSON"),
    run("c.yaml --out run_locked --set training.steps=4", "run_locked: another process is training"),
    run("c.yaml --out samples", "samples: is not a run and not empty (it holds samples.json); name a new folder"),
    run("c.yaml --out a_file", "a_file: is a file, "),
    run("c.yaml --out a_file/out", "a_file/out: cannot be created, its parent is not a folder"),
    *NOT_WRITABLE,
    run(f"c.yaml --out {LONG}", "a name as long as this cannot be used"),
]

DATA = [*SOURCES, *RUNS]

"""Commands that measure and compare, wrongly used. They meet what bad_input_measured.py builds."""

from typing import Any

from bad_input_cases import ABSENT, Case
from standin import NAME

FILES = "images/same"  # three images of 40x40 pixels


def evaluate(options: str, says: str, **more: Any) -> Case:
    return Case(f"evaluate {options}", says, **more)


def measured(options: str, says: str, **more: Any) -> Case:
    """With a network that needs no weights."""
    return evaluate(f"{options} --backbone {NAME}", says, **more)


def statistics(name: str, says: str) -> Case:
    return measured(f"data --reference stats/{name}.npz", f"stats/{name}.npz: {says}")


OPTIONS = [
    evaluate("snapshot --metrics fidd", "--metrics: unknown metric 'fidd'; did you mean fid?"),
    evaluate("snapshot --metrics speed", "--metrics: unknown metric 'speed'; known: fid, kid, is, precision"),
    evaluate("snapshot --metrics fid,", "--metrics: unknown metric ''; known: fid"),
    evaluate("snapshot --metrics fid,kid,fid", "--metrics: fid is given twice"),
    evaluate("snapshot --num -1", "-1 is not in the range x>=2"),
    evaluate("snapshot --num 1", "1 is not in the range x>=2"),
    evaluate("snapshot --repeats 0", "0 is not in the range x>=1"),
    evaluate("snapshot --batch-size 0", "0 is not in the range x>=1"),
    *(
        evaluate(f"snapshot --truncation {value}", "expected a positive number, such as 0.7")
        for value in ("0", "-1", "nan", "inf")
    ),
    evaluate("snapshot --labels some", "'some' is not one of 'reference', 'uniform'"),
    evaluate("snapshot --lpips squeeze", "'squeeze' is not one of 'alex', 'vgg'"),
    evaluate("run --repeats 2 --modes", "--repeats and --modes cannot be combined; find the best mode first"),
    evaluate("snapshot --modes", "snapshot: --modes needs a run or a checkpoint; a snapshot holds"),
    evaluate(f"{FILES} --modes", f"{FILES}: --modes needs a run or a checkpoint"),
    evaluate(
        "snapshot --metrics nearest --reference data", "nearest: writes an image; name the result with --out FILE.json"
    ),
    evaluate(
        f"{FILES} --metrics fid,nearest --reference a_file",
        "nearest: writes an image; name the result with --out FILE.json",
    ),
    evaluate(f"{FILES} --truncation 1", f"--truncation: applies to generators, but {FILES} holds images"),
    evaluate(f"{FILES} --repeats 2", "--repeats: applies to generators"),
    evaluate(f"{FILES} --labels uniform", "--labels: applies to generators"),
    evaluate("data --which best", "--which best: selects a snapshot of a run; give a run, without --modes"),
    evaluate("run --which best --modes", "--which best: selects a snapshot of a run"),
    evaluate("snapshot --metrics coherence --out src", "src: is a folder; name a file"),
    evaluate("snapshot --out a_file/x.json", "a_file/x.json: cannot be written, "),
    evaluate("snapshot --metrics coherence --inception-weights a_file", "--inception-weights: not used by these"),
    evaluate(f"{FILES} --backbone-weights a_file", "--backbone-weights: not used by these metrics"),
    evaluate(f"{FILES} --vgg16-weights a_file", "--vgg16-weights: not used by these metrics"),
    evaluate(f"{FILES} --lpips-weights a_file", "--lpips-weights: not used by these metrics"),
    evaluate("snapshot --metrics fid", "fid: compares with real images; name them with --reference"),
    evaluate("snapshot_not_shapes --metrics coherence", "was not trained on shapes, for which alone"),
    evaluate(f"snapshot --device {ABSENT}", f"--device {ABSENT}: not available here"),
]

SOURCES = [
    evaluate("run_linked --num 8", "metrics.jsonl: is a link, nothing is written through it"),
    evaluate("nope", "nope: no such folder (an id on the Hub would be USER/NAME)"),
    evaluate("nope/nope/nope", "nope/nope/nope: no such folder, and not to be had from the Hub"),
    evaluate("a_file", "a_file: expected a folder of images or an .npz with `images`"),
    evaluate("c.yaml", "c.yaml: expected a folder of images or an .npz with `images`"),
    evaluate("src/empty", "src/empty: holds no image; images end in .bmp"),
    evaluate("src", "src: bad/a/1.png cannot be used: lies deeper than the class folders"),
    evaluate("images/mixed", "images of mixed sizes, 0.png is 40x40 and 2.png 48x48; sagan prepare"),
    evaluate("src/noise/b", "2.png: not readable as an image"),
    measured(f"images/cut --reference {FILES}", "1.png: not readable as an image"),
    evaluate("src/nameless.npz", "src/nameless.npz: holds no array `images`, only x"),
    evaluate("stats/whole.npz", "stats/whole.npz: holds no array `images`, only about, count"),
    evaluate("images/tiny --metrics coherence", "coherence: at least one image of at least 16x16 is needed"),
    evaluate("images/wide --metrics coherence", "coherence: images must be uint8 (N, R, R, 3), these are"),
    evaluate("data_truncated", "data_truncated/images.npy: missing, truncated or damaged"),
    evaluate(f"{FILES} --num 4", "same: 4 images were asked for, it holds 3"),
    measured(f"images/one --reference {FILES}", "fid: needs at least 2 images, one has 1"),
    evaluate("run --which best", "run: no best step is known; set evaluate.best to the metric"),
    evaluate("run_best --which best", "run_best: no snapshot of its best step 1"),
    evaluate("run_no_snapshot", "run_no_snapshot/snapshots: no snapshot yet"),
    evaluate("run_cut_checkpoint --modes", "run_cut_checkpoint: this run has no whole checkpoint"),
    evaluate(f"run_cut_checkpoint/checkpoints/{2:08d}", "damaged checkpoint, generator.safetensors"),
    evaluate("run_not_resolved --modes", "says nothing of data.num_classes"),
    evaluate("snapshot_truncated", "missing, damaged, or not a safetensors file"),
]

REFERENCES = [
    evaluate(f"{FILES} --metrics is,recall", "recall: compares with real images; name them with --reference"),
    measured("data --reference nope", "nope: no such folder or file"),
    measured("data --reference a_file", "a_file: a file that is no .npz"),
    measured("data --reference src/empty", "src/empty: holds no image"),
    measured(
        "run --reference images/many_classes.npz --labels reference",
        "the reference has 5 classes, the generator 4; use --labels uniform", began=True,
    ),
    measured("data --reference data_64", "data_64: its images are 64x64, the samples are 32x32"),
    measured(f"{FILES} --reference images/small", "images/small: its images are 24x24, the samples are 40x40"),
    measured(f"{FILES} --reference images/mixed", "images/mixed: images of mixed sizes"),
    measured(f"{FILES} --metrics intra_fid --reference {FILES}", "intra_fid: needs labels, same"),
    measured("run_unconditional --metrics intra_fid", "needs labels, run_unconditional at step 2 has none"),
    measured(
        "images/prepared_two --reference images/prepared_alone --metrics intra_fid",
        "has one image of class 1; both sets need 2 of each class",
    ),
    measured(
        "data --reference images/prepared_two --metrics intra_fid",
        "has no image of class 2; both sets need 2 of each class",
    ),
    measured(
        f"{FILES} --reference {FILES} --metrics recall",
        "recall: needs at least 6 images, same has 3",
    ),
    measured(f"{FILES} --metrics is", "is: needs at least 10 images, same has 3"),
    measured(
        "data --metrics kid --reference stats/whole.npz",
        "kid: needs images; shapes:64 holds statistics, which only suffice for fid",
    ),
    evaluate(
        "data --metrics coherence --reference stats/whole.npz",
        "stats/whole.npz: feature statistics are for fid, which --metrics does not include",
    ),
    statistics("other_backbone", f"statistics of another backbone (dinov2-vit-b-14, here {NAME})"),
    statistics("other_weights", "statistics of another weights file (0000000000000000…, here "),
    statistics("other_size", "statistics of another image size (64x64, here 32x32)"),
    statistics("fewer_features", f"statistics of 8 features, {NAME} has 64"),
    statistics("of_one", "its count or description is invalid; create it again"),
    statistics("cut", "not readable as .npz (File is not a zip file)"),
    statistics("flipped", "not readable as statistics (.npz): Bad CRC-32 for file"),
    statistics("changed", "damaged, its checksum does not match"),
    statistics("pickle", "not readable as statistics (.npz): Object arrays cannot be loaded"),
    statistics("mean_alone", "holds neither `mean` and `covariance` nor `mu` and `sigma`"),
    statistics("halves", "mean and covariance are float64 (8,) and float64 (64, 64), expected floats (D,) and (D, D)"),
    statistics("nan", "holds values that are not finite; create it again"),
    statistics("no_covariance", "its covariance is not symmetric or has a negative variance"),
    measured(
        "data --reference stats/huge.npz",
        "fid: the features are too large for a distance in float64",
    ),
]  # fmt: skip

EVALUATION = [*OPTIONS, *SOURCES, *REFERENCES]

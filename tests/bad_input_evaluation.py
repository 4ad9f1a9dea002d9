"""Commands that measure and compare, wrongly used. They meet what bad_input_measured.py builds."""

from typing import Any

from bad_input_cases import ABSENT, Case
from standin import NAME

FILES = "images/same"  # three images of 40x40 pixels


def evaluate(options: str, says: str, **more: Any) -> Case:
    return Case(f"evaluate {options}", says, **more)


def measured(options: str, says: str, **more: Any) -> Case:
    """With a network that needs no weights."""
    return evaluate(f"{options} --backbone {NAME}", says, late=True, **more)


def statistics(name: str, says: str) -> Case:
    return measured(f"data --reference stats/{name}.npz", f"stats/{name}.npz: {says}")


OPTIONS = [
    evaluate("snapshot --metrics fidd", "--metrics: unknown metric 'fidd'; did you mean fid?"),
    evaluate("snapshot --metrics speed", "--metrics: unknown metric 'speed'; known: fid, kid, is, precision"),
    evaluate("snapshot --metrics fid,", "--metrics: unknown metric ''; known: fid"),
    evaluate("snapshot --metrics fid,kid,fid", "--metrics: fid is given twice"),
    evaluate("snapshot --num -1", "--num -1: at least 2 samples are needed"),
    evaluate("snapshot --num 1", "--num 1: at least 2 samples are needed"),
    evaluate("snapshot --repeats 0", "--repeats 0: at least 1 is needed"),
    evaluate("snapshot --batch-size 0", "--batch-size 0: at least 1 is needed"),
    *(
        evaluate(f"snapshot --truncation {value}", "expected a positive number, such as 0.7")
        for value in ("0", "-1", "nan", "inf")
    ),
    evaluate("snapshot --labels some", "'some' is not one of 'reference', 'uniform'"),
    evaluate("snapshot --lpips squeeze", "'squeeze' is not one of 'alex', 'vgg'"),
    evaluate("run --repeats 2 --modes", "--repeats and --modes exclude each other; take the best mode first"),
    evaluate("snapshot --modes", "snapshot: --modes needs a run or a checkpoint; a snapshot is the averaged generator"),
    evaluate(f"{FILES} --modes", f"{FILES}: --modes needs a run or a checkpoint"),
    evaluate(
        "snapshot --metrics nearest --reference data", "nearest: makes a sheet of images; say with --out FILE.json"
    ),
    evaluate(
        f"{FILES} --metrics fid,nearest --reference a_file",
        "nearest: makes a sheet of images; say with --out FILE.json",
    ),
    evaluate(f"{FILES} --truncation 1", f"--truncation: says how samples are drawn, {FILES} holds images already"),
    evaluate(f"{FILES} --repeats 2", "--repeats: says how samples are drawn"),
    evaluate(f"{FILES} --labels uniform", "--labels: says how samples are drawn"),
    evaluate("data --which best", "--which best: chooses among the snapshots of a run; give a run, and no --modes"),
    evaluate("run --which best --modes", "--which best: chooses among the snapshots of a run"),
    evaluate("snapshot --metrics coherence --out src", "src: is a folder; name a file"),
    evaluate("snapshot --out a_file/x.json", "a_file/x.json: cannot be written, "),
    evaluate(
        "snapshot --metrics coherence --inception-weights a_file", "--inception-weights: nothing of what is asked"
    ),
    evaluate(f"{FILES} --backbone-weights a_file", "--backbone-weights: nothing of what is asked for reads them"),
    evaluate(f"{FILES} --vgg16-weights a_file", "--vgg16-weights: nothing of what is asked for reads them"),
    evaluate(f"{FILES} --lpips-weights a_file", "--lpips-weights: nothing of what is asked for reads them"),
    evaluate("snapshot --metrics fid", "fid: compares with real images; name them with --reference"),
    evaluate("snapshot_not_shapes --metrics coherence", "was not trained on shapes; coherence is defined", late=True),
    evaluate(f"snapshot --device {ABSENT}", f"--device {ABSENT}: not available here", late=True),
]

SOURCES = [
    evaluate("run_linked --num 8", "metrics.jsonl: is a link, nothing is written through it", late=True),
    evaluate("nope", "nope: no such folder (an id on the Hub would be USER/NAME)", late=True),
    evaluate("nope/nope/nope", "nope/nope/nope: no such folder, and not to be had from the Hub", late=True),
    evaluate("a_file", "a_file: expected a folder of images or an .npz with `images`", late=True),
    evaluate("c.yaml", "c.yaml: expected a folder of images or an .npz with `images`", late=True),
    evaluate("src/empty", "src/empty: holds no image; images end in .bmp", late=True),
    evaluate("src", "src: bad/a/1.png cannot be used: lies deeper than the class folders", late=True),
    evaluate("images/mixed", "images of mixed sizes, 0.png is 40x40 and 2.png 48x48; sagan prepare", late=True),
    evaluate("src/noise/b", "2.png: not readable as an image", late=True),
    measured(f"images/cut --reference {FILES}", "1.png: not readable as an image"),
    evaluate("src/nameless.npz", "src/nameless.npz: holds no array `images`, only x", late=True),
    evaluate("stats/whole.npz", "stats/whole.npz: holds no array `images`, only about, count", late=True),
    evaluate("images/tiny --metrics coherence", "coherence: at least one image of at least 16x16 is needed", late=True),
    evaluate("images/wide --metrics coherence", "coherence: images must be uint8 (N, R, R, 3), these are", late=True),
    evaluate("data_truncated", "data_truncated/images.npy: missing, truncated or damaged", late=True),
    evaluate(f"{FILES} --num 4", "same: 4 images were asked for, it holds 3", late=True),
    measured(f"images/one --reference {FILES}", "fid: needs at least 2 images, one has 1"),
    evaluate("run --which best", "run: no best step is known (evaluate.best names the metric", late=True),
    evaluate("run_best --which best", "run_best: no snapshot of its best step 1", late=True),
    evaluate("run_no_snapshot", "run_no_snapshot/snapshots: no snapshot yet", late=True),
    evaluate("run_cut_checkpoint --modes", "run_cut_checkpoint: this run has no whole checkpoint", late=True),
    evaluate(f"run_cut_checkpoint/checkpoints/{2:08d}", "damaged checkpoint, generator.safetensors", late=True),
    evaluate("run_not_resolved --modes", "says nothing of data.num_classes, so it is not that of a run", late=True),
    evaluate("snapshot_truncated", "missing, damaged, or not a safetensors file", late=True),
]

REFERENCES = [
    evaluate(f"{FILES} --metrics is,recall", "recall: compares with real images; name them with --reference"),
    measured("data --reference nope", "nope: no such folder or file"),
    measured("data --reference a_file", "a_file: a file that is no .npz"),
    measured("data --reference src/empty", "src/empty: holds no image"),
    measured(
        "run --reference images/many_classes.npz --labels reference",
        "the reference has 5 classes, the generator 4; --labels uniform draws them alike", began=True,
    ),
    measured("data --reference data_64", "data_64: its images are 64x64, the samples are 32x32"),
    measured(f"{FILES} --reference images/small", "images/small: its images are 24x24, the samples are 40x40"),
    measured(f"{FILES} --reference images/mixed", "images/mixed: images of mixed sizes"),
    measured(f"{FILES} --metrics intra_fid --reference {FILES}", "intra_fid: a FID of each class needs labels, same"),
    measured("run_unconditional --metrics intra_fid", "needs labels, run_unconditional at step 2 has none"),
    measured(
        "images/prepared_two --reference images/prepared_alone --metrics intra_fid",
        "has one image of class 1; a class needs at least 2",
    ),
    measured(
        "data --reference images/prepared_two --metrics intra_fid",
        "has no image of class 2; both sets need every class",
    ),
    measured(
        f"{FILES} --reference {FILES} --metrics recall",
        "recall: needs at least 6 images, same has 3",
    ),
    measured(f"{FILES} --metrics is", "is: needs at least 10 images, same has 3"),
    measured(
        "data --metrics kid --reference stats/whole.npz",
        "kid: needs images, shapes:64 holds statistics only, which is enough for fid",
    ),
    evaluate(
        "data --metrics coherence --reference stats/whole.npz",
        "stats/whole.npz: statistics of features are for fid, which was not asked for", late=True,
    ),
    statistics("other_backbone", f"statistics of another backbone (dinov2-vit-b-14, here {NAME})"),
    statistics("other_weights", "statistics of another file of weights (0000000000000000…, here "),
    statistics("other_size", "statistics of another size of images (64x64, here 32x32)"),
    statistics("fewer_features", f"statistics of 8 features, {NAME} has 64"),
    statistics("of_one", "what it says of itself (count, about) is not what this program writes; make it again"),
    statistics("cut", "not readable as .npz (File is not a zip file)"),
    statistics("flipped", "not readable as statistics (.npz): Bad CRC-32 for file"),
    statistics("changed", "damaged, its checksum is of other numbers; make or fetch it again"),
    statistics("pickle", "not readable as statistics (.npz): Object arrays cannot be loaded"),
    statistics("mean_alone", "holds neither `mean` and `covariance` of ours nor `mu` and `sigma`"),
    statistics("halves", "mean and covariance are float64 (8,) and float64 (64, 64), expected floats (D,) and (D, D)"),
    statistics("nan", "its numbers are not all finite; make it again"),
    statistics("no_covariance", "not a covariance, it is not symmetric or has a negative variance"),
    measured(
        "data --reference stats/huge.npz",
        "numbers are too large for a distance in float64; look at the features",
    ),
]  # fmt: skip

EVALUATION = [*OPTIONS, *SOURCES, *REFERENCES]

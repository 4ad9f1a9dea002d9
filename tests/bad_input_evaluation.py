"""Commands that measure and compare, wrongly used. They meet what bad_input_measured.py builds."""

from typing import Any

from bad_input_cases import ABSENT, Case, train
from bad_input_measured import CACHED
from standin import NAME

FILES = "images/same"  # three images of 40x40 pixels


def evaluate(options: str, says: str, **more: Any) -> Case:
    return Case(f"evaluate {options}", says, **more)


def measured(options: str, says: str, **more: Any) -> Case:
    """With a network that needs no weights."""
    return evaluate(f"{options} --backbone {NAME}", says, late=True, **more)


def statistics(name: str, says: str) -> Case:
    return measured(f"data --reference stats/{name}.npz", f"stats/{name}.npz: {says}")


def weights(name: str, says: str, options: str = f"--reference {FILES} --inception-weights") -> Case:
    return evaluate(f"{FILES} {options} weights/{name}.pth", f"weights/{name}.pth: {says}", late=True)


def while_training(changes: str, says: str, **more: Any) -> Case:
    settings = " ".join(
        f"--set {'' if '.' in change else 'evaluate.'}{change}" for change in ["every=1", *changes.split()]
    )
    return train(settings, says, late=True, **more)


def stats(options: str, says: str, **more: Any) -> Case:
    return Case(f"stats {options}", says, **more)


def compare(options: str, says: str) -> Case:
    return Case(f"compare {options}", says)


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

LPIPS = "--metrics lpips_diversity --lpips-weights"
NETWORKS = [
    evaluate(f"{FILES} --backbone incepton", "unknown backbone 'incepton'; did you mean inception? known: ", late=True),
    evaluate(f"{FILES} --backbone speed", "unknown backbone 'speed'; known: inception, vgg16, clip-rn50", late=True),
    evaluate(f"{FILES} --metrics is --backbone vgg16", "vgg16: has no logits of classes, which Inception", late=True),
    evaluate(FILES, f"{CACHED}: not the published file (SHA-256 6726825d…); delete it, or name", late=True),
    evaluate(f"{FILES} --metrics lpips_diversity", "cannot be downloaded (", late=True),
    evaluate(f"{FILES} --backbone vgg16", "vgg16-397923af.pth: not there, and https://download", late=True),
    weights("nope", "no such file of weights"),
    Case(f"evaluate {FILES} --inception-weights a_file", "a_file: damaged, cut short, or not a file of", late=True),
    weights("pickle", "damaged, cut short, or not a file of tensors alone; nothing was executed"),
    weights("list", "holds no named tensors, weights are a dictionary of them"),
    weights("words", "a is not a tensor, weights are a dictionary of tensors"),
    weights("nan", "a holds values that are not finite"),
    weights("other", "not the weights of inception: Missing key(s) in state_dict"),
    weights("inception_empty", "its last layer (fc) is all zero", "--metrics is --inception-weights"),
    evaluate(
        f"{FILES} --reference {FILES} --inception-weights weights/inception_huge.pth",
        "inception: the features of 3 of 3 images are not finite; take other weights", late=True,
    ),
    weights("other", "its SHA-256 is ", "--backbone clip-vit-b-32 --backbone-weights"),
    evaluate(
        f"{FILES} --backbone dinov2-vit-b-14 --backbone-weights weights/other.pth",
        "dinov2-vit-b-14: runs the code of facebookresearch/dinov2, which is not fetched", late=True,
    ),
    weights("other", "not the weights of torchvision's alexnet: tensor features.0.bias is missing", LPIPS),
    weights("alexnet_other", "not the weights of torchvision's alexnet: features.0.weight has shape (2,)", LPIPS),
    weights("pickle", "damaged, cut short, or not a file of tensors alone; nothing was executed", LPIPS),
    evaluate(
        f"images/small {LPIPS} weights/alexnet.pth", "LPIPS alex: images are 24x24, it needs at least 31x31", late=True
    ),
]  # fmt: skip

TRAINING = [
    train("--set evaluate.metrics=[fidd]", "evaluate.metrics: unknown metric 'fidd'; did you mean fid?"),
    train("--set evaluate.metrics=[is,is]", "evaluate.metrics: is is given twice"),
    while_training("metrics=[is] num=9", "is: needs at least 10 images, evaluate.num has 9"),
    while_training("metrics=[intra_fid] data.num_classes=0", "intra_fid needs classes, this data has none"),
    while_training("metrics=[]", "evaluate.every is set, evaluate.metrics is empty; name some, such as [fid]"),
    while_training(
        "metrics=[coherence] best=fid", "evaluate.best: 'fid' is not among the scores of evaluate.metrics ("
    ),
    while_training("metrics=[nearest] best=nearest", "evaluate.best: 'nearest' is not among the scores"),
    train("--set evaluate.patience=2", "evaluate: patience needs best, the score that should improve"),
    train("--set evaluate.num=0", "evaluate.num: input should be greater than 0, not 0"),
    train("--set evaluate.lpips=squeeze", "evaluate.lpips: input should be 'alex' or 'vgg', not 'squeeze'"),
    while_training("metrics=[coherence] data.source=pair_data", "coherence is defined on the shapes data alone"),
    while_training(
        "metrics=[intra_fid] data.source=images/prepared_plain", "intra_fid needs classes, this data has none"
    ),
    while_training("metrics=[fid] backbone=incepton", "unknown backbone 'incepton'; did you mean inception?"),
    while_training("metrics=[fid]", f"{CACHED}: not the published file"),
    while_training("metrics=[fid] backbone_weights=nope", "nope: no such file of weights"),
    while_training(f"metrics=[fid] backbone={NAME} reference=nope", "nope: no such folder or file"),
    while_training(
        f"metrics=[fid] backbone={NAME} reference=data_64", "data_64: prepared at 64x64, data.resolution is"
    ),
]

STATISTICS = [
    stats("data", "Missing option '--out'"),
    stats("data --out out.txt", "out.txt: a file of statistics is an .npz"),
    stats("src/pair --out out.npz", "src/pair: not prepared; --resolution says at which size its images are taken"),
    stats("src/pair --out out.npz --resolution 33", "--resolution 33: expected one of 32, 64, 128, 256"),
    stats("data --out out.npz --resolution 64", "data: prepared at 32x32, --resolution says 64"),
    stats("data --out out.npz --batch-size 0", "0 is not in the range x>=1"),
    stats("data_truncated --out out.npz", "data_truncated/images.npy: missing, truncated or damaged"),
    stats(
        f"stats/whole.npz --out out.npz --resolution 32 --backbone {NAME}",
        "stats/whole.npz: holds statistics already",
    ),
    stats("data --out out.npz --backbone speed", "unknown backbone 'speed'; known: inception", late=True),
    stats("data --out out.npz", f"{CACHED}: not the published file", late=True),
    stats(f"nope --out out.npz --resolution 32 --backbone {NAME}", "nope: no such folder or file", late=True),
    stats(f"data --out a_file/out.npz --backbone {NAME}", "a_file/out.npz: cannot be written, "),
    stats(
        f"images/prepared_one --out out.npz --backbone {NAME}",
        "fid: needs at least 2 images, ", late=True,
    ),
]  # fmt: skip

SPEED = [
    Case("bench evaluate --num 1", "1 is not in the range x>=2"),
    Case("bench evaluate --rounds 0", "0 is not in the range x>=1"),
    Case("bench evaluate --inception-weights nope", "nope: no such file of weights", late=True),
    Case("bench evaluate --inception-weights weights/nan.pth", "a holds values that are not finite", late=True),
    Case("bench evaluate", f"{CACHED}: not the published file", late=True),
]

COMPARISON = [
    compare("", "Missing argument 'RUNS...'"),
    compare("run ''", "it is empty"),
    compare("run nope", "nope: no such folder; name the folder of a run"),
    compare("run a_file", "a_file: is a file; name the folder of a run"),
    compare("run src", "src: not a run, it has no config.yaml; name a folder that sagan train made"),
    compare("run run", "run: is given twice"),
    compare("run ./run_bare/../run", "is given twice"),
    compare("run run_list_record", "run_list_record/run.json: not the record of a run; restore it, or remove it"),
    compare("run run_cut_record", "run_cut_record/run.json: not readable as JSON"),
    compare("run_cut_score", "metrics.jsonl: line 2 is damaged (it is not JSON, or cut short); repair or remove"),
    compare("run_list_score", "line 2 is damaged (it is not an object of names and values)"),
    compare("run_word_score", "line 2 is damaged (fid is 'low', expected a finite number)"),
    compare("run_nan_score", "line 2 is damaged (fid is nan, expected a finite number)"),
    compare("run_word_step", "line 2 is damaged (its step is 'two', expected a whole number)"),
    compare("run_word_protocol", "line 2 is damaged (its protocol is no group of fields)"),
    compare("run_word_warnings", "line 2 is damaged (its warnings are no list)"),
    compare("run_latin_score", "run_latin_score/metrics.jsonl: not readable ("),
    compare("run --metric fidd", "--metric fidd: unknown metric; did you mean fid?"),
    compare("run --metric speed", "--metric speed: unknown metric; known: fid, kid"),
    compare("run --metric fid", "--metric fid: none of these runs was measured so; they have no score yet"),
    compare("run_scored --metric kid", "--metric kid: none of these runs was measured so; they have fid"),
    compare("run --published cifar11", "cifar11: no published results on that data set; did you mean cifar10?"),
    compare("run --published faces", "no published results on that data set; known: cifar10, imagenet128"),
    compare("--published run run_scored", "run: is a folder, not a data set; put --published behind the runs"),
    compare("run --published", "--published: the data of these runs are none with published results; name one of"),
    compare("run --out out.pdf", "--out out.pdf: a comparison is drawn as a .png; give a name that ends in .png"),
    compare("run --out images/folder.png", "--out images/folder.png: is a folder; name a .png file"),
    compare("run --out a_file/out.png", "a_file: is a file, a folder was expected"),
    compare("run_bare --out out.png", "--out: nothing to draw, these runs have neither scores nor a log nor sheets"),
    compare("run_odd_sheet --out out.png", "not a sheet of 32 px samples, it has 50x50 pixels; remove it, or move it"),
    compare("run_cut_sheet --out out.png", "00000002.png: not readable as an image"),
]  # fmt: skip

EVALUATION = [*OPTIONS, *SOURCES, *REFERENCES, *NETWORKS, *TRAINING, *STATISTICS, *SPEED, *COMPARISON]

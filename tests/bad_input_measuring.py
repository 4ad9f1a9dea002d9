"""Networks that measure, scores while training, and `sagan stats`. They meet what bad_input_measured.py builds."""

from typing import Any

from bad_input_cases import Case, setting, train
from bad_input_evaluation import FILES, evaluate
from bad_input_measured import CACHED
from standin import NAME


def weights(name: str, says: str, options: str = f"--reference {FILES} --inception-weights") -> Case:
    return evaluate(f"{FILES} {options} weights/{name}.pth", f"weights/{name}.pth: {says}")


def while_training(changes: str, says: str, **more: Any) -> Case:
    settings = " ".join(
        f"--set {'' if '.' in change else 'evaluate.'}{change}" for change in ["every=1", *changes.split()]
    )
    return train(settings, says, **more)


def stats(options: str, says: str, **more: Any) -> Case:
    return Case(f"stats {options}", says, **more)


LPIPS = "--metrics lpips_diversity --lpips-weights"
NETWORKS = [
    evaluate(f"{FILES} --backbone incepton", "unknown backbone 'incepton'; did you mean inception?"),
    evaluate(f"{FILES} --backbone speed", "unknown backbone 'speed'; known: inception, vgg16, clip-rn50"),
    evaluate(f"{FILES} --metrics is --backbone vgg16", "vgg16: has no class logits, which Inception"),
    evaluate(FILES, f"{CACHED}: not the official file (SHA-256 6726825d…); delete it, or name"),
    evaluate(f"{FILES} --metrics lpips_diversity", "cannot be downloaded ("),
    evaluate(f"{FILES} --backbone vgg16", "vgg16-397923af.pth: missing, and https://download"),
    weights("nope", "no such weights file"),
    Case(f"evaluate {FILES} --inception-weights a_file", "a_file: damaged, truncated, or not a file of"),
    weights("pickle", "damaged, truncated, or not a file of tensors only; nothing was executed"),
    weights("list", "expected a dictionary of tensors"),
    weights("words", "a is not a tensor, expected a dictionary of tensors"),
    weights("nan", "a holds values that are not finite"),
    weights("other", "not the weights of inception: Missing key(s) in state_dict"),
    weights("inception_empty", "its last layer (fc) is all zero", "--metrics is --inception-weights"),
    evaluate(
        f"{FILES} --reference {FILES} --inception-weights weights/inception_huge.pth",
        "inception: the features of 3 of 3 images are not finite; use other weights",
    ),
    weights("other", "its SHA-256 is ", "--backbone clip-vit-b-32 --backbone-weights"),
    evaluate(
        f"{FILES} --backbone dinov2-vit-b-14 --backbone-weights weights/other.pth",
        "dinov2-vit-b-14: runs code of facebookresearch/dinov2, which is never downloaded",
    ),
    weights("other", "not the weights of torchvision's alexnet: tensor features.0.bias is missing", LPIPS),
    weights("alexnet_other", "not the weights of torchvision's alexnet: features.0.weight has shape (2,)", LPIPS),
    weights("pickle", "damaged, truncated, or not a file of tensors only; nothing was executed", LPIPS),
    evaluate(
        f"images/small {LPIPS} weights/alexnet.pth", "LPIPS alex: images are 24x24, it needs at least 31x31"
    ),
]  # fmt: skip

TRAINING = [
    train("--set evaluate.metrics=[fidd]", "evaluate.metrics: unknown metric 'fidd'; did you mean fid?"),
    train("--set evaluate.metrics=[is,is]", "evaluate.metrics: is is given twice"),
    while_training("metrics=[is] num=9", "is: needs at least 10 images, evaluate.num has 9"),
    while_training("metrics=[intra_fid] data.num_classes=0", "intra_fid needs classes"),
    while_training("metrics=[]", "evaluate.metrics is empty"),
    while_training("metrics=[coherence] best=fid", "evaluate.best: 'fid' is not a score of evaluate.metrics"),
    while_training("metrics=[nearest] best=nearest", "evaluate.best: 'nearest' is not a score"),
    train("--set evaluate.patience=2", "evaluate: patience needs best, the score that should improve"),
    train("--set evaluate.num=0", "evaluate.num: input should be greater than 0, not 0"),
    train("--set evaluate.lpips=squeeze", "evaluate.lpips: input should be 'alex' or 'vgg', not 'squeeze'"),
    while_training("metrics=[coherence] data.source=pair_data", "coherence is defined for the shapes data"),
    while_training("metrics=[intra_fid] data.source=images/prepared_plain", "intra_fid needs classes"),
    while_training("metrics=[fid] backbone=incepton", "unknown backbone 'incepton'; did you mean inception?"),
    while_training("metrics=[fid]", f"{CACHED}: not the official file"),
    while_training("metrics=[fid] backbone_weights=nope", "nope: no such weights file"),
    while_training(f"metrics=[fid] backbone={NAME} reference=nope", "nope: no such folder or file"),
    while_training(
        f"metrics=[fid] backbone={NAME} reference=data_64", "data_64: prepared at 64x64, data.resolution is"
    ),
]

ROLL_BACK = "divergence.action=rollback divergence.spread=0.99 training.samples_per_class=2"
DIVERGENCE = [
    setting("divergence.worse.fid=2", "divergence.worse: fid is not scored in training; set evaluate.every"),
    setting("divergence.worse.fidd=2", "divergence.worse.fidd.[key]: input should be 'fid', "),
    setting("divergence.worse.fid=1", "divergence.worse.fid: input should be greater than 1, not 1"),
    setting("divergence.action=wait", "divergence.action: input should be 'stop' or 'rollback', not 'wait'"),
    while_training("metrics=[coherence] divergence.worse.coherence=2 divergence.action=rollback",
                   "divergence.worse with action rollback needs evaluate.best, which keeps what it goes back to"),
    train("--set divergence.saturation=0.1 --set loss.name=wasserstein", "the wasserstein loss has no floor"),
    setting("divergence.spread=0.5", "divergence.spread compares samples of one class; training.samples_per_class"),
    while_training("training.samples_per_class=2 training.sample_every=1 divergence.spread=0.99 every=0",
                   "is below 0.99 at step 1; stopped, the last checkpoint is from an earlier step", began=True),
    while_training(f"{ROLL_BACK} training.sample_every=1 every=0",
                   "at step 1 and no intact checkpoint is left to return to; stopped", began=True),
    while_training(f"{ROLL_BACK} training.sample_every=2 training.checkpoint_every=1 divergence.times=1 every=0",
                   "at step 2 after 1 rollbacks; stopped, the last checkpoint is from an earlier step", began=True),
]  # fmt: skip

STATISTICS = [
    stats("data", "Missing option '--out'"),
    stats("data --out out.txt", "out.txt: a statistics file is an .npz"),
    stats("src/pair --out out.npz", "src/pair: not prepared; give the size of its images with --resolution"),
    stats("src/pair --out out.npz --resolution 33", "--resolution 33: expected one of 32, 64, 128, 256"),
    stats("data --out out.npz --resolution 64", "data: prepared at 32x32, --resolution says 64"),
    stats("data --out out.npz --batch-size 0", "0 is not in the range x>=1"),
    stats("data_truncated --out out.npz", "data_truncated/images.npy: missing, truncated or damaged"),
    stats(
        f"stats/whole.npz --out out.npz --resolution 32 --backbone {NAME}",
        "stats/whole.npz: holds statistics already",
    ),
    stats("data --out out.npz --backbone speed", "unknown backbone 'speed'; known: inception"),
    stats("data --out out.npz", f"{CACHED}: not the official file"),
    stats(f"nope --out out.npz --resolution 32 --backbone {NAME}", "nope: no such folder or file"),
    stats(f"data --out a_file/out.npz --backbone {NAME}", "a_file/out.npz: cannot be written, "),
    stats(
        f"images/prepared_one --out out.npz --backbone {NAME}",
        "fid: needs at least 2 images, ",
    ),
]  # fmt: skip

MEASURING = [*NETWORKS, *TRAINING, *DIVERGENCE, *STATISTICS]

"""`sagan bench evaluate`: features and FID against torch-fidelity's own, in interleaved rounds of one run."""

from pathlib import Path
from statistics import median
from typing import Any

from sagan.commands.bench_result import show
from sagan.errors import UserError


def bench_evaluate_command(
    num: int,
    rounds: int,
    weights: Path | None,
    as_json: bool,
    samples: Path | None = None,
    reference: Path | None = None,
) -> None:
    """Print images/s of features, seconds of a Fréchet distance, and ratios: how many times as fast ours are.

    `num`: random images of 32 pixels a round. `weights`: of Inception; None: torch hub's cache, or else random ones,
    which change no speed. `samples`, `reference`: folders of PNG files, whose FID both compute from the files on.
    """
    if num < 1 or rounds < 1:
        raise UserError(f"--num {num}, --rounds {rounds}: both are at least 1")
    if (samples is None) != (reference is None):
        raise UserError("--samples and --reference: give both folders, or neither")
    from sagan.commands.evaluate_fid import count_of
    from sagan.commands.evaluate_variants import BATCH, SIZE, seconds_of_distances, seconds_of_features

    count = 0 if samples is None or reference is None else count_of(samples, reference)
    features = seconds_of_features(num, rounds, weights)
    distances = seconds_of_distances(rounds)
    result: dict[str, Any] = {
        "device": features.device,
        "threads": features.threads,
        "resolution": SIZE,
        "batch_size": BATCH,
        "images": num,
        "rounds": rounds,
        "weights": features.weights,
        "features_differ_by": features.difference,
    }
    for name in ("torch_fidelity", "project"):
        seconds, of_distance = features.seconds[name], distances.seconds[name]
        result[f"images_per_second_{name}"] = num / median(seconds)
        result[f"spread_{name}"] = max(seconds) / min(seconds) - 1
        result[f"seconds_frechet_{name}"] = median(of_distance)
        result[f"spread_frechet_{name}"] = max(of_distance) / min(of_distance) - 1
    result["distances_differ_by"] = distances.difference
    result["ratio_features"] = features.ratio
    result["ratio_frechet"] = distances.ratio
    if samples is not None and reference is not None:
        result |= _fid(samples, reference, count, weights)
    show(result, as_json, note="torch-fidelity: its own loop over the same images, without worker processes")


def _fid(samples: Path, reference: Path, count: int, weights: Path | None) -> dict[str, Any]:
    """Values and speed of the FID of two folders of `count` images in all; `fid_differs_by` is absolute."""
    from sagan.commands.evaluate_fid import fid_of_both
    from sagan.commands.evaluate_variants import inception_tensors

    found = fid_of_both(samples, reference, inception_tensors(weights)[0])
    ours, theirs = found["project"], found["torch_fidelity"]
    return {
        "fid_images": count,
        "fid_torch_fidelity": theirs.fid,
        "fid_project": ours.fid,
        "fid_differs_by": abs(ours.fid - theirs.fid),
        "images_per_second_fid_torch_fidelity": count / theirs.seconds,
        "images_per_second_fid_project": count / ours.seconds,
        "ratio_fid": theirs.seconds / ours.seconds,
    }

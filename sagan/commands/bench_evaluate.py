"""`sagan bench evaluate`: features and FID against torch-fidelity's own, in interleaved rounds of one run."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from sagan.errors import UserError


def bench_evaluate_command(num: int, rounds: int, weights: Path | None, as_json: bool) -> None:
    """Print images/s of features, seconds of a Fréchet distance, and ratios: how many times as fast ours are.

    `num`: random images of 32 pixels a round. `weights`: of Inception; None: torch hub's cache, or else random ones,
    which change no speed.
    """
    if num < 1 or rounds < 1:
        raise UserError(f"--num {num}, --rounds {rounds}: both are at least 1")
    from sagan.commands.evaluate_variants import BATCH, SIZE, seconds_of_distances, seconds_of_features

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
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:34} {value:.3g}" if isinstance(value, float) else f"{name:34} {value}")
    print("torch-fidelity: its own loop over the same images, without worker processes", file=sys.stderr)

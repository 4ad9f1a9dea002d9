"""What `sagan bench evaluate` times: torch-fidelity's own features and distance, and ours, on the same input."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset

from sagan.commands.machine import bench_device
from sagan.evaluation.backbones import BACKBONES, Backbone
from sagan.evaluation.inception import build_extractor, fast_inception, random_weights
from sagan.evaluation.statistics import Statistics, frechet_distance
from sagan.evaluation.weights import as_file, find_weights, load_tensors
from sagan.randomness import numpy_generator, torch_generator

BATCH, SIZE = 64, 32
DISTANCE_OF = 2048  # features, as many as Inception has


@dataclass(frozen=True)
class Timing:
    """Seconds of "torch_fidelity" and of "project", one number a round; how far their results are apart."""

    seconds: dict[str, list[float]]
    difference: float
    device: str = "cpu"
    threads: int = 1
    weights: str = ""

    @property
    def ratio(self) -> float:
        """Median over the rounds of theirs to ours."""
        return median(a / b for a, b in zip(self.seconds["torch_fidelity"], self.seconds["project"], strict=True))


class Images(Dataset):
    """uint8 (N, H, W, 3) as torch-fidelity reads images: one by one, (3, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def seconds_of_features(num: int, rounds: int, weights: Path | None) -> Timing:
    """Time Inception features of `num` random images; UserError where `weights` are named and wrong."""
    tensors, kind = inception_tensors(weights)
    device = bench_device()
    extractor = build_extractor(as_file(tensors)).to(device)
    compute = fast_inception(build_extractor(as_file(tensors)), device, logits=False)
    backbone = Backbone("inception", "", BACKBONES["inception"].dimension, "", device, compute)
    images = torch.randint(256, (num, SIZE, SIZE, 3), generator=torch_generator(0, "bench"), dtype=torch.uint8)

    def theirs(images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as ours
            found = get_featuresdict_from_dataset(Images(images), extractor, BATCH, device.type == "cuda", True, False)
        return found["2048"]

    def ours(images: Tensor) -> Tensor:
        return torch.cat([backbone(some).features.cpu() for some in images.split(BATCH)])

    difference = (theirs(images[:BATCH]) - ours(images[:BATCH])).abs().max().item()  # also warms both up
    seconds = _in_turn({"torch_fidelity": lambda: theirs(images), "project": lambda: ours(images)}, rounds)
    return Timing(seconds, difference, str(device), torch.get_num_threads(), kind)


def seconds_of_distances(rounds: int) -> Timing:
    """Time the Fréchet distance of two sets of statistics; the difference is relative."""
    a, b = _statistics(0), _statistics(1)
    as_theirs = [{"mu": s.mean, "sigma": s.covariance} for s in (a, b)]

    def theirs() -> float:
        return fid_statistics_to_metric(*as_theirs, verbose=False)[KEY_METRIC_FID]

    found: dict[str, Any] = {}
    functions = {"torch_fidelity": theirs, "project": lambda: frechet_distance(a, b)}
    seconds = _in_turn({name: lambda n=name, f=f: found.update({n: f()}) for name, f in functions.items()}, rounds)
    return Timing(seconds, abs(found["project"] / found["torch_fidelity"] - 1))


def inception_tensors(given: Path | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of Inception, and what they are: those that are named, or in torch hub's cache, or else random."""
    published = BACKBONES["inception"].published
    if given is not None or published.cached.is_file():
        return load_tensors(find_weights(published, given)), "pretrained"
    return random_weights(0), "random (none in torch hub's cache; speed does not depend on them)"


def _statistics(index: int) -> Statistics:
    """Of random features whose variances fall as those of Inception do, from 1 to a thousandth."""
    scale, count = np.geomspace(1, 0.03, DISTANCE_OF), 2 * DISTANCE_OF
    features = numpy_generator(0, "bench", index).normal(size=(count, DISTANCE_OF)) * scale + 0.1 * index
    return Statistics(count, features.mean(0), np.cov(features, rowvar=False))


def _in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every function, one number a round, the rounds interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds

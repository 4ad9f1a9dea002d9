"""Features, Frechet distance and FID, compared with torch-fidelity: python benchmarks/evaluate.py."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import cast

import click
import common
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset

from sagan.evaluation import extractors
from sagan.evaluation.fid import Statistics, frechet_distance
from sagan.utils.random import numpy_generator, torch_generator

BATCH, SIZE, DIMENSION = 64, 32, 2048


def as_dataset(images: Tensor) -> Dataset:
    """uint8 (N, H, W, 3) as a data set for torch-fidelity: one image (3, H, W) at a time."""
    return Subset(cast(Dataset, images.permute(0, 3, 1, 2)), range(len(images)))


def our_backbone(tensors: dict[str, Tensor], device: torch.device) -> extractors.Backbone:
    compute = extractors.fast_inception(extractors.build_extractor(extractors.as_file(tensors)), device, logits=False)
    return extractors.Backbone("inception", "", extractors.BACKBONES["inception"].dimension, "", device, compute)


def compare_features(tensors: dict[str, Tensor], num: int, count: int, device: torch.device) -> common.Row:
    """Time the features of `num` random images."""
    extractor = extractors.build_extractor(extractors.as_file(tensors)).to(device)
    backbone, cuda = our_backbone(tensors, device), device.type == "cuda"
    images = torch.randint(256, (num, SIZE, SIZE, 3), generator=torch_generator(0, "bench"), dtype=torch.uint8)

    def theirs() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # like ours
            return get_featuresdict_from_dataset(as_dataset(images), extractor, BATCH, cuda, True, False)["2048"]

    def ours() -> Tensor:
        return torch.cat([backbone(some).features.cpu() for some in images.split(BATCH)])

    differ = (theirs() - ours()).abs().max().item()
    seconds, _ = common.interleaved({"torch_fidelity": theirs, "project": ours}, count, repeat=1)
    return {"features_differ_by": differ, **common.rates(num, seconds),
            "ratio_features": common.ratio(seconds["torch_fidelity"], seconds["project"])}  # fmt: skip


def compare_distances(count: int) -> common.Row:
    """Time the Frechet distance of statistics whose variances decay like Inception's."""
    scale, rows = np.geomspace(1, 0.03, DIMENSION), 2 * DIMENSION
    sets = []
    for i in range(2):
        features = numpy_generator(0, "bench", i).normal(size=(rows, DIMENSION)) * scale + 0.1 * i
        sets.append(Statistics(rows, features.mean(0), np.cov(features, rowvar=False)))
    as_theirs = [{"mu": one.mean, "sigma": one.covariance} for one in sets]
    each: dict[str, Callable[[], float]] = {
        "torch_fidelity": lambda: fid_statistics_to_metric(*as_theirs, verbose=False)[KEY_METRIC_FID],
        "project": lambda: frechet_distance(sets[0], sets[1]),
    }
    seconds, _ = common.interleaved(each, count, repeat=1)
    found: common.Row = {"distances_differ_by": abs(each["project"]() / each["torch_fidelity"]() - 1)}
    found |= {f"seconds_frechet_{name}": median(times) for name, times in seconds.items()}
    return found | {"ratio_frechet": common.ratio(seconds["torch_fidelity"], seconds["project"])}


@common.benchmark
@click.option("--num", type=click.IntRange(2), default=256, show_default=True, help="Images a round.")
@common.rounds(default=3)
@click.option("--inception-weights", type=click.Path(path_type=Path), help="Default: torch hub's cache, or a download.")
def main(num: int, rounds: int, inception_weights: Path | None) -> common.Row:
    """Compare with torch-fidelity's own loop. `ratio_features`, `ratio_frechet`: speedups."""
    device, pretrained = common.pick_device(), extractors.BACKBONES["inception"].pretrained
    tensors = extractors.load_tensors(extractors.find_weights(pretrained, inception_weights))
    result: common.Row = {**common.about(device), "resolution": SIZE, "batch_size": BATCH, "images": num,
                          "rounds": rounds}  # fmt: skip
    return result | compare_features(tensors, num, rounds, device) | compare_distances(rounds)


if __name__ == "__main__":
    main()

"""Features, Frechet distance and FID, compared with torch-fidelity: python benchmarks/evaluate.py."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import cast

import click
import common
import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset

from sagan.data.dataset import PreparedData, is_prepared
from sagan.evaluation import extractors
from sagan.evaluation.command import open_images, parse_source
from sagan.evaluation.features import SAMPLE_GRID, extract
from sagan.evaluation.fid import Statistics, frechet_distance
from sagan.utils.errors import UserError
from sagan.utils.random import numpy_generator, torch_generator

BATCH, SIZE, DIMENSION = 64, 32, 2048
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


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


def compare_fid(folders: tuple[Path, Path], tensors: dict[str, Tensor], device: torch.device) -> common.Row:
    """Time the FID of two folders (PNG files or prepared data) end to end, without TF32 and caches."""
    sets = [open_images(parse_source(str(folder))) for folder in folders]
    first, second = (
        as_dataset(torch.from_numpy(PreparedData.open(folder).images[:])) if is_prepared(folder) else str(folder)
        for folder in folders
    )
    fid, count = {}, sum(each.count for each in sets)

    def theirs() -> None:
        fid["torch_fidelity"] = torch_fidelity.calculate_metrics(
            input1=first, input2=second, fid=True, cuda=device.type == "cuda", batch_size=BATCH,
            feature_extractor_weights_path=file.name, samples_find_deep=True, cache=False, verbose=False,
        )[KEY_METRIC_FID]  # fmt: skip

    def ours() -> None:
        backbone = our_backbone(tensors, device)
        fid["project"] = frechet_distance(*(extract(each, backbone, BATCH).statistics for each in sets))

    with NamedTemporaryFile(suffix=".pth") as file, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        Path(file.name).write_bytes(extractors.as_file(tensors).getvalue())
        seconds = {"torch_fidelity": common.timed(theirs), "project": common.timed(ours)}
    return {
        "fid_images": count, **{f"fid_{name}": value for name, value in fid.items()},
        "fid_differs_by": abs(fid["torch_fidelity"] - fid["project"]),
        **{f"images_per_second_fid_{name}": count / each for name, each in seconds.items()},
        "ratio_fid": seconds["torch_fidelity"] / seconds["project"],
    }  # fmt: skip


@common.benchmark
@click.option("--num", type=click.IntRange(2), default=256, show_default=True, help="Images a round.")
@common.rounds(default=3)
@click.option("--inception-weights", type=click.Path(path_type=Path), help="Default: torch hub's cache, or a download.")
@click.option("--fid", type=(FOLDER, FOLDER), metavar="SAMPLES REFERENCE", help="Also compare the FID of two folders.")
def main(num: int, rounds: int, inception_weights: Path | None, fid: tuple[Path, Path] | None) -> common.Row:
    """Compare with torch-fidelity's own loop. `ratio_features`, `ratio_frechet`, `ratio_fid`: speedups."""
    for folder in fid or ():
        if (folder / SAMPLE_GRID).exists():
            raise UserError(f"{folder}: holds {SAMPLE_GRID}, which torch-fidelity would score too; remove it")
    device, pretrained = common.pick_device(), extractors.BACKBONES["inception"].pretrained
    tensors = extractors.load_tensors(extractors.find_weights(pretrained, inception_weights))
    result: common.Row = {**common.about(device), "resolution": SIZE, "batch_size": BATCH, "images": num,
                          "rounds": rounds}  # fmt: skip
    result |= compare_features(tensors, num, rounds, device) | compare_distances(rounds)
    return result | (compare_fid(fid, tensors, device) if fid else {})


if __name__ == "__main__":
    main()

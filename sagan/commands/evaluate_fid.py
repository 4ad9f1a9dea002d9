"""The FID of two folders end to end, from files to number, by torch-fidelity and by us, on the same device."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch_fidelity
from torch import Tensor

from sagan.commands.evaluate_variants import Images
from sagan.commands.machine import bench_device
from sagan.commands.measured import open_files, recognise
from sagan.data.dataset import PreparedData, is_prepared
from sagan.errors import UserError
from sagan.evaluation.backbones import BACKBONES, Backbone
from sagan.evaluation.extraction import extract
from sagan.evaluation.image_set import SAMPLES_SHEET, ImageSet
from sagan.evaluation.inception import build_extractor, fast_inception
from sagan.evaluation.statistics import frechet_distance
from sagan.evaluation.weights import as_file

BATCH = 64


@dataclass(frozen=True)
class Scored:
    """One FID, and the seconds from the files to it."""

    fid: float
    seconds: float


def count_of(samples: Path, reference: Path) -> int:
    """Images in both folders. UserError where torch-fidelity would score other images than we."""
    for name, folder in (("--samples", samples), ("--reference", reference)):
        if not folder.is_dir():
            raise UserError(f"{name} {folder}: no such folder; give a folder of PNG files or of prepared data")
        if (folder / SAMPLES_SHEET).exists():
            raise UserError(
                f"{name} {folder}: holds the sheet {SAMPLES_SHEET}, which torch-fidelity would score too; remove it"
            )
    sets = [_images(folder) for folder in (samples, reference)]
    if sets[0].size != sets[1].size:
        raise UserError(f"--samples {samples}: its images are not of the size of those in {reference}")
    return sets[0].count + sets[1].count


def fid_of_both(samples: Path, reference: Path, tensors: dict[str, Tensor]) -> dict[str, Scored]:
    """By "torch_fidelity" and by "project", with the same Inception weights, neither with TF32 nor a cache."""
    device = bench_device()
    with (
        TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        file = Path(folder) / "weights.pth"
        file.write_bytes(as_file(tensors).getvalue())
        warnings.simplefilter("ignore")  # of loaders with more processes than there are cores
        start = time.perf_counter()
        found = torch_fidelity.calculate_metrics(
            input1=_theirs(samples), input2=_theirs(reference), fid=True, cuda=device.type == "cuda", batch_size=BATCH,
            feature_extractor_weights_path=str(file), samples_find_deep=True, cache=False, verbose=False,
        )  # fmt: skip
        theirs = Scored(found["frechet_inception_distance"], time.perf_counter() - start)
    start = time.perf_counter()
    compute = fast_inception(build_extractor(as_file(tensors)), device, logits=False)
    backbone = Backbone("inception", "", BACKBONES["inception"].dimension, "", device, compute)
    ours, real = (extract(_images(place), backbone, BATCH).statistics for place in (samples, reference))
    fid = frechet_distance(ours, real)
    return {"torch_fidelity": theirs, "project": Scored(fid, time.perf_counter() - start)}


def _images(folder: Path) -> ImageSet:
    return open_files(recognise(str(folder)))


def _theirs(folder: Path) -> str | Images:
    """What torch-fidelity reads: the files themselves; of prepared data its array."""
    if is_prepared(folder):
        return Images(torch.from_numpy(PreparedData.open(folder).images[:]))
    return str(folder)

"""Sampling throughput and start-up time: python benchmarks/sample.py [CONFIG]."""

import copy
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import click
import common
import torch

from sagan.config.load import load_config
from sagan.config.schema import Config
from sagan.layers.normalization import Normalization
from sagan.layers.resampling import ResamplingConv2d
from sagan.models.generator import Generator, build_generator, remove_spectral_norm
from sagan.runs.snapshot import save_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.random import torch_generator

CLASSES, IMAGES, FEW = 10, 64, 16


@torch.no_grad()
def random_generator(config: Config) -> Generator:
    """Random weights, with the batch-norm statistics of one batch so that images are not flat gray."""
    classes = CLASSES if config.data.num_classes is None else config.data.num_classes
    generator = build_generator(config, classes).requires_grad_(False)
    for module in generator.modules():
        if isinstance(module, Normalization):
            module.momentum = 1.0
    generator.memory_format = torch.channels_last
    z = torch.randn(32, generator.z_dim, generator=torch_generator(0, "bench"))
    generator.train()(z, torch.arange(32) % classes if classes else None)
    return generator.eval()


def plain_form(generator: Generator) -> Generator:
    """A copy with spectral norm in every forward, unfolded convolutions and contiguous tensors."""
    plain = copy.deepcopy(generator)
    plain.memory_format = torch.contiguous_format
    for module in plain.modules():
        if isinstance(module, ResamplingConv2d):
            module.folding = False
    return plain


def time_processes(generator: Generator, folder: Path, count: int) -> dict[str, list[float]]:
    """Seconds of each process in interleaved rounds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    save_snapshot(remove_spectral_norm(generator), folder / "snapshot")

    def start(*command: str) -> None:
        subprocess.run(command, env=environment, capture_output=True, check=True)

    def sample() -> None:
        out = tempfile.mkdtemp(dir=folder)
        start(*common.SAGAN, "sample", str(folder / "snapshot"), "--num", str(FEW), "--out", out)

    commands = {
        "python": partial(start, sys.executable, "-c", "pass"),
        "import_torch": partial(start, sys.executable, "-c", "import torch"),
        "help": partial(start, *common.SAGAN, "--help"),
        "sample": sample,
    }
    return common.interleaved(commands, count, repeat=1)[0]


@common.benchmark
@click.argument("config", default="studio32")
@common.rounds(default=5)
@click.option("--startup", is_flag=True, help="Instead, time `sagan --help` and `sagan sample` of 16 images.")
def main(config: str, rounds: int, startup: bool) -> common.Row:
    """Time sampling (default: studio32; random weights) against the plain form.

    plain: spectral norm in every forward, convolutions unfolded, contiguous, eager. `ratio_sample`: speedup. With
    --startup, `ratio_sample_to_import_torch` and `ratio_help_to_python`.
    """
    device = common.pick_device()
    generator = random_generator(load_config(config)).to(device)
    result: common.Row = {**common.about(device), "resolution": generator.resolution, "rounds": rounds,
                          "channels": generator.settings.channels}  # fmt: skip
    if startup:
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_processes(generator, Path(folder), rounds)
        for name, each in seconds.items():
            result[f"seconds_{name}"] = median(each)
        result["ratio_help_to_python"] = common.ratio(seconds["help"], seconds["python"])
        result["ratio_sample_to_import_torch"] = common.ratio(seconds["sample"], seconds["import_torch"])
        return result
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)
    forms = {
        "plain": plain_form(generator).forward,
        "project": remove_spectral_norm(generator),
    }  # methods are not fused

    def sample(name: str) -> torch.Tensor:
        return torch.cat(list(generate(forms[name], z, labels, device)))

    difference = (sample("plain").int() - sample("project").int()).abs().max().item()
    result |= {"images": IMAGES, "images_differ_by": difference}
    seconds, _ = common.interleaved({name: partial(sample, name) for name in forms}, rounds)
    return result | common.rates(IMAGES, seconds) | {"ratio_sample": common.ratio(seconds["plain"], seconds["project"])}


if __name__ == "__main__":
    main()

"""Sampling throughput and start-up time: python benchmarks/sample.py [SNAPSHOT|CONFIG]."""

import copy
import os
import resource
import subprocess
import sys
import tempfile
import time
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
from sagan.layers.spectral_norm import spectral_normalize
from sagan.models.generator import Generator, build_generator, remove_spectral_norm
from sagan.runs.snapshot import load_snapshot, save_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.random import torch_generator

CLASSES, IMAGES, FEW = 10, 64, 16
NOTE = "plain: spectral norm in every forward, convolutions unfolded, contiguous, eager"


def generator_of(source: str | None) -> Generator:
    """A spectrally normalized generator in eval mode: from a snapshot or run, or a config (random weights)."""
    if source is None or source.endswith((".yaml", ".yml")):
        return random_generator(load_config(source or "studio32"))
    generator = load_snapshot(source)
    spectral_normalize(generator, generator.settings.spectral_norm_eps)
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def random_generator(config: Config) -> Generator:
    """Random weights, with the batch-norm statistics of one batch so that images are not flat gray."""
    classes = CLASSES if config.data.num_classes is None else config.data.num_classes
    generator = build_generator(config, classes).requires_grad_(False)
    for module in generator.modules():
        if isinstance(module, Normalization):
            module.momentum = 1.0
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


def project_form(generator: Generator) -> Generator:
    """The form of a snapshot: spectral norm removed, channels last."""
    folded = remove_spectral_norm(generator)
    folded.memory_format = torch.channels_last
    return folded


def time_processes(snapshot: Path, folder: Path, count: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of each process, in interleaved rounds after a warm-up round."""
    took: dict[str, list[tuple[float, float]]] = {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for i in range(count + 1):
        for name, command in {
            "python": [sys.executable, "-c", "pass"],
            "import_torch": [sys.executable, "-c", "import torch"],
            "help": [*common.SAGAN, "--help"],
            "sample": [*common.SAGAN, "sample", str(snapshot), "--num", str(FEW), "--out", str(folder / f"out{i}")],
        }.items():
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, env=environment, capture_output=True, check=True)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            took.setdefault(name, []).append((wall, processor))
    return {name: each[1:] for name, each in took.items()}


@click.command()
@click.argument("source", metavar="[SNAPSHOT|CONFIG]", required=False)
@common.rounds(default=5)
@click.option("--startup", is_flag=True, help="Instead, time `sagan --help` and `sagan sample` of 16 images.")
@common.as_json
def main(source: str | None, rounds: int, startup: bool, as_json: bool) -> None:
    """Time sampling (default: the studio32 generator with random weights) against the plain form.

    `ratio_sample`: speedup. With --startup, `ratio_sample_to_import_torch` and `ratio_help_to_python`.
    """
    device = common.pick_device()
    generator = generator_of(source).to(device)
    result: common.Row = {**common.about(device), "resolution": generator.resolution, "rounds": rounds,
                          "channels": generator.settings.channels}  # fmt: skip
    if startup:
        with tempfile.TemporaryDirectory() as folder:
            save_snapshot(project_form(generator), Path(folder) / "snapshot")
            took = time_processes(Path(folder) / "snapshot", Path(folder), rounds)
        walls = {name: [wall for wall, _ in each] for name, each in took.items()}
        for name, each in walls.items():
            result |= {f"seconds_{name}": median(each), f"spread_{name}": common.spread(each)}
            result[f"processor_seconds_{name}"] = median(processor for _, processor in took[name])
        result["ratio_help_to_python"] = common.ratio(walls["help"], walls["python"])
        result["ratio_sample_to_import_torch"] = common.ratio(walls["sample"], walls["import_torch"])
        common.show(result, as_json)
        return
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)
    forms = {"plain": plain_form(generator).forward, "project": project_form(generator)}  # a method is not fused

    def sample(name: str) -> torch.Tensor:
        return torch.cat(list(generate(forms[name], z, labels, device)))

    difference = (sample("plain").int() - sample("project").int()).abs().max().item()
    result |= {"images": IMAGES, "images_differ_by": difference}
    seconds, _ = common.interleaved({name: partial(sample, name) for name in forms}, rounds)
    result |= {**common.rates(IMAGES, seconds), "ratio_sample": common.ratio(seconds["plain"], seconds["project"])}
    common.show(result, as_json, NOTE)


if __name__ == "__main__":
    common.run(main)

"""`sagan bench step`: the training step against its plain form, in interleaved rounds of one run."""

import os
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sagan.commands.bench_result import show
from sagan.config import load_config
from sagan.errors import UserError
from sagan.settings import Config

DEFAULT = ["discriminator.widths=[2,2,2,2]", "optim.d_steps=1", "training.batch_size=32", "data.num_classes=10"]

TRAINED = ("project", "compiled", "cuda_graphs")  # forms that a run can have, in float32
MATMUL = "matmul"  # the machine's own, timed among the variants
ASSUMED_CLASSES = 10  # where the config takes them from its data
PLAIN = "plain: two discriminator passes, convolutions unfolded, contiguous, eager"
Precision = Literal["no", "tf32", "bf16"]


@dataclass(frozen=True)
class Variant:
    """A way to compute the step. `folded` and `channels_last` change rounding only.

    `precision`: "no" is float32 throughout, without TF32 in convolutions, which torch has on by itself on a GPU;
    "tf32" takes it in convolutions and matrix products; "bf16" is autocast.
    """

    two_passes: bool = False  # of the discriminator: reals, then fakes
    folded: bool = True
    channels_last: bool = True
    spectral_norm: bool = True
    precision: Precision = "no"
    compiled: bool = False
    cuda_graphs: bool = False  # of what is compiled

    @property
    def needs_cuda(self) -> bool:
        return self.precision == "tf32" or self.cuda_graphs


VARIANTS = {
    "plain": Variant(two_passes=True, folded=False, channels_last=False),
    "project": Variant(),
    "unfolded": Variant(folded=False),
    "contiguous": Variant(channels_last=False),
    "two_passes": Variant(two_passes=True),
    "without_norm": Variant(spectral_norm=False),
    "tf32": Variant(precision="tf32"),
    "bf16": Variant(precision="bf16"),
    "compiled": Variant(compiled=True),
    "cuda_graphs": Variant(compiled=True, cuda_graphs=True),
    "bf16_compiled": Variant(precision="bf16", compiled=True),
    "bf16_cuda_graphs": Variant(precision="bf16", compiled=True, cuda_graphs=True),
}


def bench_step_command(
    config_path: Path | None, overrides: list[str], names: str | None, rounds: int, as_json: bool, layers: bool = False
) -> None:
    """Print images/s of every variant, and ratios to the first: how many times as fast. `names` None: `default_names`.

    `ratio_step`: the fastest form that the project trains in float32, compiled or not, to the plain form.
    `warm_up_seconds_NAME`: of a compiled variant's first step, which is in no other figure.
    `gflops_NAME`: what it does a second, by the formula of its layers; `ratio_of_matmul_NAME`: as a part of what this
    machine's own float32 matrix product does, in the same rounds. `layers`: print those layers instead, untimed.
    """
    given = None if names is None else _known(names)
    config = load_config(config_path, [*DEFAULT, *overrides] if config_path is None else overrides)
    if layers:
        _show_layers(config, as_json)
        return
    import torch

    from sagan.commands.machine import bench_device, product
    from sagan.commands.step_variants import peak_of, seconds_a_step, stepper, warm_up

    device = bench_device(config)
    chosen = given or default_names(device.type == "cuda")
    if device.type != "cuda" and (lost := [name for name in chosen if VARIANTS[name].needs_cuda]):
        raise UserError(f"--variants: {lost[0]} needs a CUDA device; leave it out")
    multiply, operations = product(device)
    steps = {name: stepper(config, device, VARIANTS[name]) for name in chosen}
    warm = warm_up(steps, device)
    seconds = seconds_a_step({**steps, MATMUL: multiply}, rounds, device)
    result: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "resolution": config.data.resolution,
        "batch_size": config.training.batch_size,
        "rounds": rounds,
        "gflops_matmul": operations / statistics.median(seconds[MATMUL]) / 1e9,
    }
    for name, step in steps.items():
        result |= _speed(name, config, seconds, chosen[0])
        result |= _share_of_matmul(name, config, seconds, operations)
        if (peak := peak_of(step, device, VARIANTS[name].compiled)) is not None:
            result[f"peak_mib_{name}"] = peak
    result |= {f"warm_up_seconds_{name}": warm[name] for name in chosen if VARIANTS[name].compiled}
    if chosen[0] == "plain" and (trained := [key for key in map(ratio_to_plain, TRAINED) if key in result]):
        result["ratio_step"] = max(result[key] for key in trained)
    show(result, as_json, note=PLAIN if "plain" in chosen else "")


def default_names(cuda: bool) -> list[str]:
    """The plain form and the project's; compiled where there is a compiler for it; CUDA graphs where there is CUDA."""
    names = ["plain", "project"]
    if cuda:
        return [*names, "compiled", "cuda_graphs"]
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return [*names, "compiled"] if compiler else names


def _known(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise UserError(f"--variants: unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    return chosen


def ratio_to_plain(name: str) -> str:
    return f"ratio_{name}_to_plain"


def _speed(name: str, config: Config, seconds: dict[str, list[float]], first: str) -> dict[str, float]:
    times = seconds[name]
    found = {
        f"images_per_second_{name}": config.training.batch_size / statistics.median(times),
        f"spread_{name}": max(times) / min(times) - 1,
    }
    if name != first:
        found[f"ratio_{name}_to_{first}"] = statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
    return found


def _share_of_matmul(name: str, config: Config, seconds: dict[str, list[float]], operations: int) -> dict[str, float]:
    from sagan.commands.layer_table import step_macs, tables

    classes = ASSUMED_CLASSES if config.data.num_classes is None else config.data.num_classes
    flops = 2 * step_macs(config, tables(config, classes, VARIANTS[name].folded))
    pairs = zip(seconds[name], seconds[MATMUL], strict=True)
    return {
        f"gflops_{name}": flops / statistics.median(seconds[name]) / 1e9,
        f"ratio_of_matmul_{name}": statistics.median((flops / a) / (operations / b) for a, b in pairs),
    }


def _show_layers(config: Config, as_json: bool) -> None:
    from sagan.commands.layer_table import as_result, as_text, tables

    classes = ASSUMED_CLASSES if config.data.num_classes is None else config.data.num_classes
    result = as_result(config, tables(config, classes))
    note = "R1's second derivatives are not in the step" if config.loss.r1 else ""
    show(result, as_json, as_text(result), note)

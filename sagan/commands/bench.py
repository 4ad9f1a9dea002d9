"""`sagan bench step`: the training step against its plain form, in interleaved rounds of one run."""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sagan.config import load_config
from sagan.errors import UserError

DEFAULT = ["discriminator.widths=[2,2,2,2]", "optim.d_steps=1", "training.batch_size=32", "data.num_classes=10"]

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
    "bf16_compiled": Variant(precision="bf16", compiled=True),
}


def bench_step_command(config_path: Path | None, overrides: list[str], names: str, rounds: int, as_json: bool) -> None:
    """Print images/s of every variant, and ratios to the plain form or else the project's: how many times as fast."""
    chosen = [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise UserError(f"--variants: unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    config = load_config(config_path, [*DEFAULT, *overrides] if config_path is None else overrides)
    import torch

    from sagan.commands.step_variants import peak_of, seconds_a_step, stepper

    device = torch.device("cuda" if torch.cuda.is_available() and config.training.device != "cpu" else "cpu")
    if device.type != "cuda" and (narrow := [name for name in chosen if VARIANTS[name].precision == "tf32"]):
        raise UserError(f"--variants: {narrow[0]} needs a CUDA device; leave it out")
    steps = {name: stepper(config, device, VARIANTS[name]) for name in chosen}
    seconds = seconds_a_step(steps, rounds, device)
    batch, first = config.training.batch_size, chosen[0]
    result: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "resolution": config.data.resolution,
        "batch_size": batch,
        "rounds": rounds,
    }
    for name, times in seconds.items():
        result[f"images_per_second_{name}"] = batch / statistics.median(times)
        result[f"spread_{name}"] = max(times) / min(times) - 1
        if (peak := peak_of(steps[name], device, VARIANTS[name].compiled)) is not None:
            result[f"peak_mib_{name}"] = peak
        if name != first:
            key = "ratio_step" if (first, name) == ("plain", "project") else f"ratio_{name}_to_{first}"
            result[key] = statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")
    if "plain" in chosen:
        print("plain: two discriminator passes, convolutions unfolded, contiguous, eager", file=sys.stderr)

"""`sagan bench attention`: every mechanism beside a 3×3 convolution of as many channels, in interleaved rounds."""

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from sagan.commands.bench_result import aligned, show
from sagan.errors import UserError

if TYPE_CHECKING:
    from sagan.commands.attention_variants import Variant

NOTE = "forward and backward; times and multiply-adds in multiples of the 3x3 convolution's"


@dataclass(frozen=True)
class Options:
    """As the command line gives them."""

    names: str | None = None  # comma-separated; None: all
    channels: int = 64
    resolution: int = 32
    batch_size: int = 8
    rounds: int = 5
    explicit: bool = False
    as_json: bool = False


def bench_attention_command(options: Options) -> None:
    """Print parameters, multiply-adds, peak memory and time of forward and backward, as multiples of the convolution's.

    `ratio_time_NAME`: how many times as long as the convolution a mechanism takes. `explicit`: also self-attention with
    its weights formed, and `ratio_explicit`: how many times as long as the fused one that takes; where they would not
    fit, it is skipped and says how many bytes it needs.
    """
    import torch

    from sagan.attention import ATTENTION
    from sagan.commands.attention_variants import CONVOLUTION, EXPLICIT, explicit, step_of, too_large, variants
    from sagan.commands.machine import bench_device
    from sagan.commands.step_variants import peak_of, seconds_a_step

    names = list(ATTENTION) if options.names is None else [name.strip() for name in options.names.split(",")]
    if unknown := [name for name in names if name not in ATTENTION]:
        raise UserError(f"--names: unknown mechanism {unknown[0]!r}; known: {', '.join(ATTENTION)}")
    if options.explicit and "self_attention" not in names:
        raise UserError("--explicit is set beside self_attention; --names leaves it out")
    device = bench_device()
    why: str | None = None
    try:
        each = variants(names, options.channels, options.resolution, device)
        if options.explicit:
            why = too_large(options.channels, options.resolution, options.batch_size, device)
            if why is None:
                each[EXPLICIT] = explicit(options.channels, options.resolution, device)
    except ValueError as error:
        raise UserError(f"--channels {options.channels}, --resolution {options.resolution}: {error}") from None
    shape = (options.batch_size, options.channels, options.resolution, options.resolution)
    x = torch.randn(shape, device=device, requires_grad=True)
    steps = {name: step_of(variant.module, x) for name, variant in each.items()}
    seconds = seconds_a_step(steps, options.rounds, device)
    peaks = {name: peak_of(step, device) for name, step in steps.items()}
    keys = ("channels", "resolution", "batch_size", "rounds")
    result: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads()}
    result |= {key: getattr(options, key) for key in keys}
    for name, variant in each.items():
        result |= _measures(name, variant, peaks[name], seconds[name], each[CONVOLUTION], seconds[CONVOLUTION])
    if EXPLICIT in each:
        pairs = zip(seconds[EXPLICIT], seconds["self_attention"], strict=True)
        result["ratio_explicit"] = median(a / b for a, b in pairs)
    if why is not None:
        result[f"skipped_{EXPLICIT}"] = why
    skipped = "" if why is None else f"\n{EXPLICIT}: skipped, {why}"
    show(result, options.as_json, _table(result, list(each)) + skipped, NOTE)


def _measures(
    name: str, variant: "Variant", peak: float | None, seconds: list[float], unit: "Variant", unit_seconds: list[float]
) -> dict[str, Any]:
    """What is told of one variant; its ratios are to `unit`, the convolution."""
    found: dict[str, Any] = {
        f"parameters_{name}": variant.parameters,
        f"mega_macs_{name}": variant.macs / 1e6,
        f"peak_mib_{name}": peak,
        f"milliseconds_{name}": 1000 * median(seconds),
    }
    if variant is not unit:
        found[f"ratio_macs_{name}"] = variant.macs / unit.macs
        found[f"ratio_time_{name}"] = median(a / b for a, b in zip(seconds, unit_seconds, strict=True))
    return found


def _table(result: dict[str, Any], names: list[str]) -> str:
    shape = (
        f"{result['batch_size']} maps of {result['channels']} channels, {result['resolution']}x{result['resolution']}"
    )
    rows = [(shape, "parameters", "macs", "time", "peak MiB")]
    for name in names:
        macs, time = (result.get(f"ratio_{what}_{name}", 1.0) for what in ("macs", "time"))
        rows.append(
            (name, f"{result[f'parameters_{name}']}", f"{macs:.2f}", f"{time:.2f}", f"{result[f'peak_mib_{name}']:.1f}")
        )
    return aligned(rows)

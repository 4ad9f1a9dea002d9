"""The options of `sagan bench`. Imports no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sagan.parameters import Place, as_json, inception_weights


def of_config(command: Callable[..., None]) -> Callable[..., None]:
    """CONFIG and --set, as every bench of a config takes them."""
    change = click.option(
        "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting (repeatable)."
    )
    return click.argument("config", type=click.Path(path_type=Path), required=False)(change(command))


@click.group()
def bench() -> None:
    """Measure speed as ratios of variants taken in one run."""


@bench.command("step")
@of_config
@click.option(
    "--variants",
    help="Compared to the first. [default: plain,project, and compiled with a C++ compiler, cuda_graphs on a GPU]",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved rounds of all.")
@click.option("--layers", is_flag=True, help="Instead: multiply-adds of every layer and of a step, untimed.")
@as_json
def bench_step(config: Path | None, overrides: tuple[str, ...], variants: str | None, rounds: int, layers: bool,
               as_json: bool) -> None:  # fmt: skip
    """A training step against its plain form; default: studio32, 64 channels, batch 32."""
    from sagan.commands.bench import bench_step_command

    bench_step_command(config, list(overrides), variants, rounds, as_json, layers)


@bench.command("evaluate")
@click.option("--num", type=click.IntRange(2), default=256, show_default=True, help="Images a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Interleaved rounds of both.")
@inception_weights
@click.option("--samples", type=Place(), metavar="DIR", help="PNG files: also their FID, from files to value.")
@click.option("--reference", type=Place(), metavar="DIR", help="Of that FID: PNG files.")
@as_json
def bench_evaluate(num: int, rounds: int, inception_weights: Path | None, samples: Path | None,
                   reference: Path | None, as_json: bool) -> None:  # fmt: skip
    """Features and FID against torch-fidelity's own loop, on the same images."""
    from sagan.commands.bench_evaluate import bench_evaluate_command

    bench_evaluate_command(num, rounds, inception_weights, as_json, samples, reference)


@bench.command("attention")
@click.option("--names", metavar="A,B", help="Mechanisms; default: all.")
@click.option("--channels", type=click.IntRange(1), default=64, show_default=True)
@click.option("--resolution", type=click.IntRange(1), default=32, show_default=True, help="Side of the map.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved rounds of all.")
@click.option("--explicit", is_flag=True, help="Also self-attention with its weights formed.")
@as_json
def bench_attention(**options: Any) -> None:
    """Every attention mechanism beside a 3×3 convolution: forward and backward, peak memory, multiply-adds."""
    from sagan.commands.bench_attention import Options, bench_attention_command

    bench_attention_command(Options(**options))


@bench.command("throughput")
@of_config
@click.option("--batch-sizes", default="64,128,256,512", show_default=True, metavar="A,B")
@click.option("--precisions", default="no,tf32,bf16", show_default=True, metavar="A,B", help="no: float32 throughout.")
@click.option("--compile", is_flag=True, help="Each also through torch.compile, and with CUDA graphs of that.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="In all.")
@click.option("--cell-seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True,
              help="The most for one cell.")  # fmt: skip
@click.option("--out", type=Place(), metavar="FILE.jsonl", help="Keep what is measured; the same command goes on.")
@as_json
def bench_throughput(**options: Any) -> None:
    """The training step over batch size, precision, memory layout and torch.compile: images/s, memory, losses."""
    from sagan.commands.bench_throughput import Options, bench_throughput_command

    bench_throughput_command(Options(**options))


@bench.command("scaling")
@of_config
@click.option("--processes", type=click.IntRange(2), default=2, show_default=True, help="Against one.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@click.option(
    "--steps", type=click.IntRange(2), default=12, show_default=True, help="A round, the first quarter untimed."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Interleaved rounds of both.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@as_json
def bench_scaling(**options: Any) -> None:
    """Real training under torchrun against one process, each with the same batch; default: small networks."""
    from sagan.commands.bench_scaling import Options, bench_scaling_command

    bench_scaling_command(Options(**options))


@bench.command("sample")
@click.argument("source", metavar="[SNAPSHOT|CONFIG]", required=False)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved rounds of both.")
@as_json
def bench_sample(source: str | None, rounds: int, as_json: bool) -> None:
    """Drawing images against the plain form; default: the generator of studio32, random weights."""
    from sagan.commands.bench_sample import bench_sample_command

    bench_sample_command(source, rounds, as_json)


@bench.command("startup")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved rounds of all.")
@as_json
def bench_startup(rounds: int, as_json: bool) -> None:
    """`sagan --help` and `sagan sample` of 16 images against python and `import torch`, in processes of their own."""
    from sagan.commands.bench_startup import bench_startup_command

    bench_startup_command(rounds, as_json)


@bench.command("memory")
@of_config
@click.option("--resolutions", default="32,64,128,256", show_default=True, metavar="A,B")
@click.option("--batch", type=click.IntRange(1), help="Images of a step; default: the config's.")
@click.option("--limit-gib", type=click.FloatRange(0, min_open=True), help="For a step; default: 80 % of what is free.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True,
              help="The most for one process.")  # fmt: skip
@as_json
def bench_memory(**options: Any) -> None:
    """The most memory of a training step by resolution, with and without activation checkpointing."""
    from sagan.commands.bench_memory import Options, bench_memory_command

    bench_memory_command(Options(**options))


@bench.command("data")
@of_config
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="Pictures to prepare.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Training steps to feed.")
@click.option("--array-mib", type=click.IntRange(1), default=1024, show_default=True, help="Prepared data to read.")
@as_json
def bench_data(**options: Any) -> None:
    """Preparing images against decoding them, feeding a training step, memory while reading a large array."""
    from sagan.commands.bench_data import Options, bench_data_command

    bench_data_command(Options(**options))

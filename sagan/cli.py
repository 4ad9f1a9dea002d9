"""The `sagan` command: parse, call one function of commands/, print. Imports no torch; neither does `--help`."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from sagan.commands.ablate_options import Options, ablate_options
from sagan.commands.bench_options import bench
from sagan.commands.export_options import export
from sagan.errors import UserError
from sagan.parameters import Place, as_json, device, inception_weights

FULL, DENIED = "the disk is full", "no permission to read or write it"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # of the GPU, of torch's CPU allocator
OF_THE_SYSTEM = {  # what a user can run into anywhere; every other OSError is a defect of ours
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL,
    errno.EACCES: DENIED, errno.EPERM: DENIED, errno.EROFS: DENIED,
    errno.ENAMETOOLONG: "a name as long as this cannot be used",
}  # fmt: skip


@click.group(
    commands=[bench, export], context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="sagan")
def cli() -> None:
    """Self-Attention GANs: prepare data, train, sample, evaluate, look at the attention."""


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=Place(), help="Folder of the run; the same command again resumes.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting (repeatable).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Short for --set training.device=…")
@click.option("--init-from", type=Place(), metavar="SNAPSHOT|RUN", help="Start from these weights (fine-tuning).")
@click.option("--dry-run", is_flag=True, help="Show settings, layers and attention, then stop.")
def train(config: Path, out: Path | None, overrides: tuple[str, ...], device: str | None, init_from: Path | None,
          dry_run: bool) -> int:  # fmt: skip
    """Train as CONFIG (a YAML file) says; also under `accelerate launch train.py` and torchrun."""
    changes = [*overrides]
    if device is not None:
        changes.append(f"training.device={device}")
    if init_from is not None:  # as a string of YAML: a folder may be called 3
        changes.append(f"training.init_from={json.dumps(str(init_from), ensure_ascii=False)}")
    if dry_run:
        from sagan.commands.describe import describe_command

        return describe_command(config, changes)
    if out is None:
        raise click.UsageError("Missing option '--out': the folder of the run.")
    from sagan.commands.train import train_command

    return train_command(config, out, changes)


@cli.command()
@click.argument("source")
@click.option("--out", type=Place(), required=True, help="Folder of the prepared data.")
@click.option("--resolution", type=int, default=32, show_default=True, help="32, 64, 128 or 256.")
@click.option("--resize", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
              help="Of images that are not square.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used and list it.")
@as_json
def prepare(source: str, out: Path, resolution: int, resize: str, skip_bad: bool, as_json: bool) -> None:
    """Check SOURCE and convert it: a folder of images, torchvision:NAME, an .npz, or shapes."""
    from sagan.commands.prepare import prepare_command

    prepare_command(source, out, resolution, resize, skip_bad, as_json)


@cli.command()
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, help="Folder of the images.")
@click.option("--seeds", metavar="0-63,80", help="Which images: seeds and inclusive ranges.")
@click.option("--num", type=int, metavar="N", help="Short for --seeds 0-(N-1).")
@click.option("--classes", metavar="0,3|NAMES", help="Every seed in each of these classes.")
@click.option("--truncation", type=float, help="Draw z from a normal truncated at this value.")
@click.option("--grid", is_flag=True, help="Also one sheet of all images.")
@click.option("--npz", is_flag=True, help="One samples.npz instead of PNG files.")
@click.option("--interpolate", nargs=2, type=int, metavar="A B", help="Go from seed A to seed B.")
@click.option("--frames", type=int, default=32, show_default=True, help="Of an interpolation.")
@click.option("--format", "animation", type=click.Choice(["gif", "mp4"]), default="gif", show_default=True)
@device
def sample(**options: Any) -> None:
    """Draw images from SNAPSHOT: a snapshot folder, a run (its newest one) or a Hub id."""
    from sagan.commands.sample import sample_command

    sample_command(**options)


@cli.command()
@click.argument("source")
@click.option("--out", type=Place(), required=True, help="Folder of figures, arrays and page.")
@click.option("--seeds", default="0-7", show_default=True, metavar="0-7", help="Which images.")
@click.option("--classes", metavar="0,3|NAMES", help="Every seed in each of these classes.")
@click.option(
    "--points", metavar="K|random|grid", help="Query points an image (default 5, where they are of interest)."
)
@click.option("--at", metavar="ROW,COL;…", help="Query points in image pixels, instead of --points.")
@click.option("--network", type=click.Choice(["generator", "discriminator", "both"]), default="generator",
              show_default=True, help="The discriminator needs a run or a checkpoint.")  # fmt: skip
@click.option("--images", type=Place(), metavar="DIR", help="Real images for the discriminator; default: the run's.")
@click.option("--layers", metavar="NAMES", help="Only these maps, such as attention.16x16.")
@click.option("--html", is_flag=True, help="Also a page on which the pointer shows every cell's map.")
@click.option("--animate", type=click.Choice(["snapshots", "path"]), help="Maps over a run, or of a moving point.")
@click.option("--mp4", is_flag=True, help="The animation as .mp4 instead of .gif.")
@click.option("--smooth", is_flag=True, help="Blend the cells of the maps.")
@click.option("--tile", type=click.IntRange(64, 1024), default=128, show_default=True, help="Pixels of an image.")
@click.option("--lpips-weights", type=Place(), metavar="FILE", help="Measure by LPIPS what attention changes.")
@as_json
def attend(**options: Any) -> None:
    """Show what the networks of SOURCE (a run, a checkpoint, a snapshot or a Hub id) attend to."""
    from sagan.commands.attend import attend_command
    from sagan.commands.attend_options import Options

    attend_command(Options(**options))


@cli.command()
@click.argument("source")
@click.option("--reference", metavar="DATA|STATISTICS", help="Real images; default: the training data of a run.")
@click.option("--metrics", metavar="fid,kid,…", help="Default: fid, for a generator of shapes coherence.")
@click.option("--num", type=int, metavar="N", help="Samples (default 10000); of a folder some of its images.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Of the feature extractor.")
@click.option("--labels", type=click.Choice(["reference", "uniform"]), default="reference", show_default=True,
              help="Class frequencies of the samples.")  # fmt: skip
@click.option("--truncation", type=float, help="Draw z from a normal truncated at this value.")
@click.option("--repeats", type=int, default=1, show_default=True, help="With other seeds each; gives mean ± std.")
@click.option("--which", type=click.Choice(["newest", "best"]), default="newest", show_default=True,
              help="Snapshot of a run.")  # fmt: skip
@click.option("--modes", is_flag=True, help="Compare averaged and raw weights, running and standing statistics.")
@click.option(
    "--backbone", default="inception", show_default=True, help="Of the features: also vgg16, dinov2-…, clip-…."
)
@inception_weights
@click.option("--backbone-weights", type=Place(), metavar="FILE", help="Of another --backbone.")
@click.option("--vgg16-weights", type=Place(), metavar="FILE", help="Also precision and recall on VGG16.")
@click.option("--lpips", type=click.Choice(["alex", "vgg"]), default="alex", show_default=True, help="Its trunk.")
@click.option("--lpips-weights", type=Place(), metavar="FILE", help="Of its trunk; default as above.")
@click.option("--out", type=Place(), metavar="FILE.json", help="Write the result here, not into the run.")
@device
@as_json
def evaluate(**options: Any) -> None:
    """Score SOURCE: a run, a snapshot, a Hub id, a folder of images or an .npz."""
    from sagan.commands.evaluate import evaluate_command
    from sagan.commands.evaluate_options import Options

    evaluate_command(Options(**options))


@cli.command()
@click.argument("data")
@click.option("--out", type=Place(), required=True, metavar="FILE.npz", help="The file of statistics.")
@click.option("--resolution", type=int, help="32, 64, 128 or 256; prepared data says it itself.")
@click.option("--resize", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
              help="Of images that are not square.")  # fmt: skip
@click.option("--backbone", default="inception", show_default=True, help="Of the features.")
@click.option("--inception-weights", "--backbone-weights", "weights", type=Place(), metavar="FILE",
              help="Default: torch hub's cache, or a download.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images at once.")
@device
def stats(**options: Any) -> None:
    """Write the feature statistics of DATA to a file that `evaluate --reference` takes."""
    from sagan.commands.stats import stats_command

    stats_command(**options)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=Place())
@click.option("--metric", help="Show and draw this score alone.")
@click.option("--published", is_flag=False, flag_value="auto", metavar="[DATA]", help="Add the published numbers.")
@click.option("--out", type=Place(), metavar="FILE.png", help="Curves over images seen, sample sheets side by side.")
@as_json
def compare(runs: tuple[Path, ...], metric: str | None, published: str | None, out: Path | None, as_json: bool) -> None:
    """Show how RUNS differ in settings and scores; scores of different protocols are kept apart."""
    from sagan.commands.compare import compare_command

    compare_command(list(runs), published, metric, out, as_json)


@cli.command()
@ablate_options
def ablate(**options: Any) -> int:
    """Train CONFIG in variants, each with the same seeds, and show what each scores, costs and attends to."""
    from sagan.commands.ablate import ablate_command

    return ablate_command(Options(**options))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one message on stderr and exit code 2."""
    try:
        code = cli.main(arguments, prog_name="sagan", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except click.Abort:
        code = 130
    except UserError as error:
        code = _refuse(str(error))
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        reason = f"{error.filename or 'output'}: {OF_THE_SYSTEM[error.errno]}; nothing is half-written"
        code = _refuse(str(UserError(reason)))  # which escapes what the name may hold
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        code = _refuse("not enough memory; lower training.batch_size (raise optim.accumulation) or the channels")
    sys.exit(code or 0)


def _refuse(message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # not once for every process of torchrun
        print(f"sagan: {message}", file=sys.stderr)
    return 2

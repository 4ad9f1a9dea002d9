"""The `sagan` command. Subcommands are imported when called, so `sagan --help` does not need torch."""

import os
import sys
from importlib import import_module

import click

from sagan.utils.errors import UserError, user_errors

COMMANDS = {  # name -> (module that defines NAME_cli, line in `sagan --help`)
    "train": ("sagan.training.trainer", "Train a GAN from a config, or resume a run."),
    "sample": ("sagan.sampling.writer", "Generate images from a snapshot."),
    "evaluate": ("sagan.evaluation.command", "Compute FID and other metrics."),
    "attend": ("sagan.inspection.command", "Show what the networks attend to."),
    "explore": ("sagan.inspection.explore", "Write a page that runs a generator in the browser."),
    "compare": ("sagan.experiments.compare", "Compare runs: settings, scores, curves."),
    "ablate": ("sagan.experiments.ablate", "Train variants of a config and compare them."),
    "prepare": ("sagan.data.prepare", "Check and convert a data set."),
    "stats": ("sagan.evaluation.command", "Precompute the feature statistics of a data set."),
    "export": ("sagan.sampling.export", "Export a generator to ONNX or torch.export."),
    "import": ("sagan.runs.import_command", "Import a checkpoint of another project."),
    "configs": ("sagan.config.load", "List the configs that come with sagan."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_cli")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sagan")
def cli() -> None:
    """Self-Attention GANs: train a generator, sample images, evaluate FID, inspect attention maps."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Mistakes of the user end in one message on stderr and exit code 2."""
    try:
        with user_errors():
            code = cli.main(arguments, prog_name="sagan", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except click.Abort:
        code = 130
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once for all processes of torchrun
            print(f"sagan: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)

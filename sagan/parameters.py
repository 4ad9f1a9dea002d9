"""Kinds of values and options that several commands of `sagan` take."""

from pathlib import Path
from typing import Any

import click


class Place(click.ParamType):
    """A path that is named: an empty text, as of a shell variable that is not set, is not the working folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return Path(value)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="What computes.")  # fmt: skip
inception_weights = click.option("--inception-weights", type=Place(), metavar="FILE",
                                 help="Default: torch hub's cache, or a download.")  # fmt: skip

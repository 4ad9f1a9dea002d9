"""`sagan export` on the command line. Imports no torch."""

from typing import Any

import click

from sagan.parameters import Place, as_json


@click.command()
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, metavar="FILE", help="A .onnx or .pt2 file.")
@click.option("--format", "kind", type=click.Choice(["onnx", "torch"]), help="Default: what the file's name says.")
@click.option("--opset", type=click.IntRange(18, 25), help="Version of the ONNX operators (default 18).")
@click.option("--uint8/--float", default=False, show_default="--float",
              help="Images as bytes (B, R, R, 3), or floats (B, 3, R, R) in [-1, 1].")  # fmt: skip
@click.option("--check/--no-check", default=True, show_default=True, help="Compare its images with the generator's.")
@click.option("--speed", is_flag=True, help="Time it against our own sampling.")
@as_json
def export(**options: Any) -> None:
    """Write the generator of SNAPSHOT (a snapshot, a run or a Hub id) to a file that runs without this project."""
    from sagan.commands.export import export_command

    export_command(**options)

"""The options of `sagan ablate`, and what can be seen to be wrong with them. Imports no torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sagan.errors import UserError
from sagan.parameters import Place, as_json

RECORD = "ablation.json"


@dataclass(frozen=True)
class Options:
    """As the command line gives them. `config` may be the folder of an ablation, which is then shown again."""

    config: Path
    vary: tuple[str, ...] = ()
    seeds: str | None = None
    overrides: tuple[str, ...] = ()
    reference: str | None = None
    out: Path | None = None
    jobs: int | None = None
    devices: str | None = None
    as_json: bool = False

    @property
    def shows_again(self) -> bool:
        return self.config.is_dir()

    @property
    def slots(self) -> tuple[str | None, ...]:
        """One for each run that may go on at a time: the device it sees, None: all."""
        if self.devices is not None:
            return tuple(name.strip() for name in self.devices.split(","))
        return (None,) * (self.jobs or 1)


def ablate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options of `sagan ablate`."""
    for option in reversed((
        click.argument("config", type=click.Path(path_type=Path)),
        click.option("--vary", multiple=True, metavar="KEY[+KEY]=V1,V2,…",
                     help="A setting and its values; several: every combination."),
        click.option("--seeds", metavar="0-2", help="Every variant with each of these; default: the config's seed."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting for all."),
        click.option("--reference", metavar="DATA", help="Short for --set evaluate.reference=…"),
        click.option("--out", type=Place(), help="Folder of the ablation; the same command again goes on."),
        click.option("--jobs", type=click.IntRange(1), metavar="N", help="Train so many runs at a time."),
        click.option("--devices", metavar="0,1", help="Train one run on each of these GPUs at a time."),
        as_json,
    )):  # fmt: skip
        command = option(command)
    return command


def check_options(options: Options) -> None:
    """UserError for options that are wrong in themselves, or do not fit each other."""
    if options.shows_again:
        _check_show(options)
        return
    if not options.vary:
        raise UserError("--vary: nothing varies; such as --vary generator.attention.16=self_attention,null")
    if options.out is None:
        raise UserError("--out: say in which folder the ablation goes")
    if options.jobs is not None and options.devices is not None:
        raise UserError("--jobs and --devices exclude each other; on GPUs one run goes on each of the --devices")
    if options.devices is not None and not all(options.slots):
        raise UserError(f"--devices {options.devices}: expected GPUs separated by commas, such as 0,1")
    if len(set(options.slots)) < len(options.slots) and options.devices is not None:
        raise UserError(f"--devices {options.devices}: one is given twice")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("ablate starts its runs itself; start it without torchrun or accelerate launch")


def _check_show(options: Options) -> None:
    if not (options.config / RECORD).is_file():
        raise UserError(f"{options.config}: no ablation, it has no {RECORD}; name a config, or the folder of one")
    given = {
        "--vary": options.vary, "--seeds": options.seeds, "--set": options.overrides, "--reference": options.reference,
        "--out": options.out, "--jobs": options.jobs, "--devices": options.devices,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise UserError(f"{name}: {options.config} is an ablation, which is shown again; to go on name its config")

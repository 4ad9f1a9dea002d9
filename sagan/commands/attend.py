"""`sagan attend`: what a generator attends to, as a figure, as arrays, and in numbers."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagan.errors import UserError
from sagan.selections import parse_classes, parse_seeds

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sagan.inspection.maps import Recording
    from sagan.inspection.partner import PartnerMass
    from sagan.networks import Generator

MOST_IMAGES, MOST_POINTS = 128, 64  # beyond that no figure is readable
RANDOM, GRID = 5, 9  # points of `random` and of `grid`
COLUMNS = ("gamma", "entropy", "distance", "far_mass")


def attend_command(source: str, out: Path, seeds: str, classes: str | None, points: str, as_json: bool) -> None:
    """Write attention.png and attention.npz into `out` and print whether attention does anything.

    `source`: snapshot folder, run or Hub id. `classes`: every seed in each of them; None: seed mod num_classes.
    `points`: how many salient points, "random" or "grid". `as_json`: one object on stdout, all else on stderr.
    """
    chosen, count = parse_seeds(seeds), _parse_points(points)
    _check_images(len(chosen))
    from sagan.inspection.figure import attention_figure
    from sagan.inspection.health import attention_health, describe
    from sagan.inspection.maps import save_npz
    from sagan.images import save_png
    from sagan.snapshot import load_snapshot

    generator = load_snapshot(source)
    if not len(generator.attention):
        ...

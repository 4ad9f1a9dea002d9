"""`sagan ablate`: the picture, of every mechanism there is."""

from dataclasses import replace

import numpy as np
import pytest

from sagan.attention import ATTENTION
from sagan.commands.ablate_numbers import Measured, Row
from sagan.commands.ablate_picture import ablation_picture, maps_shown
from sagan.commands.ablate_plan import Ablation, Outcome
from sagan.commands.ablate_vary import Variant
from sagan.config import make_config
from sagan.inspection.maps import attention_of
from sagan.inspection.points import grid_points
from sagan.networks import bake, build_generator
from sagan.sampling import default_labels, latents
from sagan.snapshot import load_snapshot, save_snapshot

MEASURED = Measured(0, 1, {"coherence": 0.25}, {}, 1.0, 1.0, 1.0, {})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ablation, list[Row]]:
    """A snapshot of an untrained generator with each mechanism, of one without, and a variant without a run."""
    raw = {"generator": {"channels": 8, "widths": [2, 2, 2, 2]}}
    names = ["none", *ATTENTION]
    configs = {
        name: make_config(raw, [f"generator.attention={'{}' if name == 'none' else '{16: ' + name + '}'}"])
        for name in names
    }
    variants = {name: Variant(name, {"generator.attention": name}) for name in names}
    ablation = Ablation(
        tmp_path_factory.mktemp("ablation"), make_config(raw), variants, configs,
        {(name, 0): Outcome("done") for name in names},
    )  # fmt: skip
    for name in names:
        save_snapshot(
            bake(build_generator(configs[name], 4)), ablation.run_folder((name, 0)) / "snapshots" / "00000001"
        )
    return ablation, [*(Row(name, (1, 1), (MEASURED,)) for name in names), Row("waiting", (1, 1), ())]


def test_every_mechanism_has_its_row(rows: tuple[Ablation, list[Row]]) -> None:
    """Breaks when the maps of a mechanism cannot be drawn, or a row shows the samples of another run."""
    ablation, found = rows
    heights = {}
    for row in found[:-1]:
        alone = ablation_picture(ablation, [row])
        assert alone is not None
        heights[row.name] = alone.shape[0]
        drawn_right = bool((alone[60:250, 600:] < 250).any()) if alone.shape[1] > 700 else False
        assert drawn_right == (row.name not in ("none", "residual_block")), row.name
    together = ablation_picture(ablation, found)
    assert together is not None
    assert together.dtype == np.uint8
    note = 34  # pixels, once below all
    assert together.shape[0] == sum(heights.values()) - note * (len(heights) - 1)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gated_positional", ["attention"]), ("em_attention", ["attention"]), ("dual_attention", ["position"]),
        ("cbam", ["channel", "spatial"]), ("residual_block", []),
    ],
)  # fmt: skip
def test_which_maps_are_shown(rows: tuple[Ablation, list[Row]], name: str, shown: list[str]) -> None:
    """Breaks when a part of a mechanism's map stands for the whole, or each head takes a block."""
    generator = load_snapshot(rows[0].run_folder((name, 0)))
    z, labels = latents(range(2), generator.z_dim), default_labels(range(2), 4)
    recording = maps_shown(attention_of(generator, z, labels, range(2), grid_points(3)))
    assert [map_name.partition("/")[2] for map_name in recording.maps] == shown
    if len(shown) == 1:
        assert all(found.weights.shape == (2, 1, 3, 16, 16) for found in recording.maps.values())


def test_without_a_finished_run_there_is_none(rows: tuple[Ablation, list[Row]]) -> None:
    """Breaks when an ablation whose runs all failed ends in a traceback."""
    ablation, found = rows
    assert ablation_picture(ablation, [replace(row, runs=()) for row in found]) is None

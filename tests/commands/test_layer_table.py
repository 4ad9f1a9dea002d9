"""`sagan bench step --layers`: multiply-adds by formula against torch's own counter."""

import json
from pathlib import Path

import pytest
import torch
from command_line import sagan
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sagan.commands.bench import Variant
from sagan.commands.layer_table import layers, step_macs, tables, total
from sagan.commands.step_variants import stepper
from sagan.config import load_config
from sagan.discriminator import Discriminator
from sagan.networks import Generator

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
SMALL = ["data.num_classes=3", "generator.channels=8", "discriminator.channels=8", "training.batch_size=4",
         "generator.attention={16: self_attention}", "discriminator.attention={16: self_attention}",
         "optim.d_steps=2"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_config_counts_what_torch_counts(name: str) -> None:
    """Breaks when a layer is forgotten, counted twice or by a wrong formula: every mechanism, every preset."""
    config, classes = load_config(CONFIGS / name, ["training.batch_size=2", "optim.accumulation=1"]), 5
    side = config.data.resolution
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        labels = torch.zeros(2, dtype=torch.long)
        for network, x in (
            (Generator(config.generator, side, classes), torch.empty(2, config.generator.z_dim)),
            (Discriminator(config.discriminator, side, classes), torch.empty(2, 3, side, side)),
        ):
            with FlopCounterMode(display=False) as counter:
                network(x, labels)
            found = layers(network, x, labels)
            assert 2 * total(found) == counter.get_total_flops()
            assert sum(layer.parameters for layer in found) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "changes",
    [[], ["training.activation_checkpointing=true"], ["training.batch_size=1"]],
    ids=" ".join,
)  # fmt: skip
def test_a_step_counts_what_torch_counts(changes: list[str]) -> None:
    """Breaks when an update's passes are miscounted; but for what the fused attention's backward computes again."""
    config = load_config(None, [*SMALL, *changes])
    step = stepper(config, torch.device("cpu"), Variant(spectral_norm=False))
    with FlopCounterMode(display=False) as counter:
        step()
    assert 2 * step_macs(config, tables(config, 3)) == pytest.approx(
        counter.get_total_flops(), rel=0.06
    )  # torch 2.11 counts some backward operations that 2.15 does not


def test_unfolded_costs_more() -> None:
    """Breaks when the plain form is counted as folded."""
    config = load_config(None, SMALL)
    folded, unfolded = (step_macs(config, tables(config, 3, folded)) for folded in (True, False))
    assert 1.2 < unfolded / folded < 2


def test_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when table and object say different things, or a step is timed although only its layers are asked for."""
    changes = [f"--set={setting}" for setting in SMALL]
    assert sagan("bench", "step", *changes, "--layers", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(row["mega_macs"] for row in found["discriminator"]) == pytest.approx(found["mega_macs_discriminator"])
    assert {"layer", "kind", "output", "parameters", "mega_macs"} == found["generator"][0].keys()
    assert not any(key.startswith(("ratio", "images_per_second")) for key in found)
    assert sagan("bench", "step", *changes, "--layers") == 0
    out = capsys.readouterr().out
    assert all(row["layer"] in out for row in found["generator"] + found["discriminator"])
    assert f"{found['giga_macs_step']:.2f}" in out

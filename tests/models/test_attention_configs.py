"""configs/attention: the same network and budget, with each mechanism of the table at the same place."""

from pathlib import Path

import pytest
import torch

from sagan.attention import ATTENTION
from sagan.config.load import differences, load_config
from sagan.inspection.record import attention_modules
from sagan.models.generator import build_discriminator, build_generator

FOLDER = Path(__file__).parents[2] / "configs" / "attention"
MECHANISMS = {"residual": "residual_block"}  # under another name; "none" has none
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_mechanism_has_one() -> None:
    """There is one config for each mechanism."""
    assert {MECHANISMS.get(name, name) for name in NAMES} == {*ATTENTION, "none"}


@pytest.mark.parametrize("name", NAMES)
def test_they_differ_in_attention_alone(name: str) -> None:
    """The configs differ only in the mechanism."""
    config = load_config(FOLDER / f"{name}.yaml")
    changed = differences(load_config(FOLDER / "none.yaml"), config)
    networks = ("generator", "discriminator")
    assert all(setting.startswith(tuple(f"{network}.attention" for network in networks)) for setting in changed)
    placed = {} if name == "none" else {16: {"name": MECHANISMS.get(name, name), "place": "after"}}
    for network in (config.generator, config.discriminator):
        assert {size: at.model_dump() for size, at in network.attention.items()} == placed
    assert config.evaluate.metrics == ("coherence",)
    assert config.evaluate.every == config.training.steps


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_draw_and_judge(name: str) -> None:
    """Each mechanism fits its place in both networks."""
    config = load_config(FOLDER / f"{name}.yaml")
    generator, discriminator = build_generator(config, 4), build_discriminator(config, 4)
    labels = torch.arange(2)
    images = generator(torch.randn(2, generator.z_dim), labels)
    assert images.shape == (2, 3, 32, 32)
    logits = discriminator(images, labels).logits
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()
    for network in (generator, discriminator):
        assert len(attention_modules(network)) == (0 if name == "none" else 1)

"""configs/attention: the same network and budget, with each mechanism of the table at the same place."""

from pathlib import Path

import pytest
import torch

from sagan.attention import ATTENTION
from sagan.config.load import differences, load_config
from sagan.inspection.record import attention_modules
from sagan.models.generator import build_discriminator, build_generator

FOLDER = Path(__file__).parents[2] / "configs" / "attention"
MECHANISMS = {path.stem: path.stem for path in FOLDER.glob("*.yaml")} | {"residual": "residual_block"}


def test_every_mechanism_has_one() -> None:
    assert set(MECHANISMS.values()) == {*ATTENTION, "none"}


@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_they_differ_in_attention_alone_and_build(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    changed = differences(load_config(FOLDER / "none.yaml"), config)
    assert all(setting.startswith(("generator.attention", "discriminator.attention")) for setting in changed)
    placed = {} if name == "none" else {16: {"name": MECHANISMS[name], "place": "after"}}
    for network in (config.generator, config.discriminator):
        assert {size: at.model_dump() for size, at in network.attention.items()} == placed
    assert config.evaluate.metrics == ("coherence",)
    assert config.evaluate.every == config.training.steps
    generator, discriminator = build_generator(config, 4), build_discriminator(config, 4)
    labels = torch.arange(2)
    images = generator(torch.randn(2, generator.z_dim), labels)
    assert images.shape == (2, 3, 32, 32)
    assert torch.isfinite(discriminator(images, labels).logits).all()
    for network in (generator, discriminator):
        assert len(attention_modules(network)) == len(placed)

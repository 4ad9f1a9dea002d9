"""`discriminator.frontend` as users write it: names, options and mistakes."""

import pytest
import torch

from sagan.config.load import load_config
from sagan.config.schema import FRONTEND_SETTINGS, CoarseToFineSettings, Config, ZoomSettings
from sagan.models.generator import build_discriminator
from sagan.utils.errors import UserError


def test_names_and_options():
    assert load_config(None).discriminator.frontend is None
    assert load_config(None, ["discriminator.frontend=null"]).discriminator.frontend is None
    assert load_config(None, ["discriminator.frontend=zoom"]).discriminator.frontend == ZoomSettings()
    given = load_config(None, ["discriminator.frontend={name: coarse_to_fine, patches: 3}"])
    assert given.discriminator.frontend == CoarseToFineSettings(patches=3)
    assert Config.model_validate(given.to_dict()) == given
    changed = load_config(None, ["discriminator.frontend={name: zoom}", "discriminator.frontend.scales=3"])
    assert changed.discriminator.frontend == ZoomSettings(scales=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["coarse"], "discriminator.frontend: "),
        (["3"], "discriminator.frontend: "),
        (["{scales: 2}"], "discriminator.frontend: "),
        (["{name: zoom, patches: 8}"], "discriminator.frontend.zoom.patches"),
        (["{name: zoom, scales: 4}"], "discriminator.frontend.zoom.scales"),
        (["{name: zoom, size: 18}"], "size must be a multiple of 4"),
        (["{name: coarse_to_fine, cells: 5}"], "5x5"),
        (["{name: coarse_to_fine, patches: 64}"], "at most 63"),
        (["{name: coarse_to_fine, patch: 32}"], "32 pixels"),
        (["coarse_to_fine", "data.resolution=64", "discriminator.attention={4: self_attention}"], "attention at 4x4"),
    ],
)
def test_mistakes_are_refused_in_one_line(settings: list[str], message: str):
    with pytest.raises(UserError) as error:
        load_config(None, [f"discriminator.frontend={settings[0]}", *settings[1:]])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
@pytest.mark.parametrize("name", list(FRONTEND_SETTINGS))
def test_defaults_fit_every_resolution(resolution: int, name: str):
    settings = [f"data.resolution={resolution}", "discriminator.channels=8", f"discriminator.frontend={name}"]
    config = load_config(None, [*settings, "discriminator.attention={}"])
    with torch.no_grad():
        logits, _ = build_discriminator(config, 2)(torch.zeros(1, 3, resolution, resolution), torch.tensor([1]))
    assert len(logits) == 1


def test_without_a_front_end_keys_are_those_of_existing_checkpoints():
    keys = build_discriminator(load_config(None, ["discriminator.channels=4"]), 2).state_dict()
    assert {key.split(".")[0] for key in keys} == {"trunk", "head"}

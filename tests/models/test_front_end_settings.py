"""`discriminator.frontend` as users write it: names, options and mistakes."""

import pytest
import torch

from sagan.config.load import load_config
from sagan.config.schema import FRONTEND_SETTINGS, CoarseToFineSettings, Config, ZoomSettings
from sagan.models.generator import build_discriminator
from sagan.utils.errors import UserError


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], None),
        (["=null"], None),
        (["=zoom"], ZoomSettings()),
        (["={name: coarse_to_fine, patches: 3}"], CoarseToFineSettings(patches=3)),
        (["={name: zoom}", ".scales=3"], ZoomSettings(scales=3)),
    ],
)
def test_names_and_options(settings: list[str], expected: ZoomSettings | CoarseToFineSettings | None):
    config = load_config(None, [f"discriminator.frontend{setting}" for setting in settings])
    assert config.discriminator.frontend == expected
    assert Config.model_validate(config.to_dict()) == config


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

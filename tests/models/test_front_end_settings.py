"""`discriminator.frontend` as users write it: names, options, mistakes, and what it leaves alone."""

import pytest
import torch

from sagan.config.load import load_config
from sagan.config.schema import FRONTEND_SETTINGS, CoarseToFineSettings, Config, ZoomSettings
from sagan.models.frontends import FRONTENDS
from sagan.models.generator import build_discriminator
from sagan.utils.errors import UserError


def test_names_and_options():
    """A bare name, options, null, and a resolved config are read."""
    assert load_config(None).discriminator.frontend is None
    assert load_config(None, ["discriminator.frontend=null"]).discriminator.frontend is None
    assert load_config(None, ["discriminator.frontend=zoom"]).discriminator.frontend == ZoomSettings()
    given = load_config(None, ["discriminator.frontend={name: coarse_to_fine, patches: 3}"])
    assert given.discriminator.frontend == CoarseToFineSettings(patches=3)
    assert Config.model_validate(given.to_dict()) == given
    changed = load_config(None, ["discriminator.frontend={name: zoom}", "discriminator.frontend.scales=3"])
    assert changed.discriminator.frontend == ZoomSettings(scales=3)


def test_every_front_end_has_settings():
    """Every front-end has settings."""
    assert FRONTENDS.keys() == FRONTEND_SETTINGS.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["coarse"], "discriminator.frontend: "),
        (["3"], "discriminator.frontend: "),
        (["{scales: 2}"], "discriminator.frontend: "),
        (["{name: zoom, patches: 8}"], "unknown setting discriminator.frontend.zoom.patches; known: name, scales"),
        (["{name: zoom, scales: 4}"], "discriminator.frontend.zoom.scales: input should be 2 or 3, not 4"),
        (["{name: zoom, size: 18}"], "size must be a multiple of 4"),
        (["{name: coarse_to_fine, cells: 5}"], "no map of 5x5 cells"),
        (["{name: coarse_to_fine, patches: 64}"], "at most 63"),
        (["{name: coarse_to_fine, patch: 32}"], "patches of 32 pixels"),
        (["coarse_to_fine", "data.resolution=64", "discriminator.attention={4: self_attention}"],
         "attention at 4x4"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(settings: list[str], message: str):
    """Wrong names, options and sizes are refused in one line."""
    with pytest.raises(UserError) as error:
        load_config(None, [f"discriminator.frontend={settings[0]}", *settings[1:]])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
@pytest.mark.parametrize("name", list(FRONTENDS))
def test_defaults_fit_every_resolution(resolution: int, name: str):
    """The defaults work at every resolution."""
    config = load_config(None, [f"data.resolution={resolution}", "discriminator.channels=16",
                                f"discriminator.frontend={name}"])  # fmt: skip
    with torch.no_grad():
        logits, _ = build_discriminator(config, 2)(torch.zeros(1, 3, resolution, resolution), torch.tensor([1]))
    assert len(logits) == 1


def test_a_plain_discriminator_is_as_before():
    """A discriminator without a front-end has the keys of existing checkpoints."""
    keys = build_discriminator(load_config(None, ["discriminator.channels=4"]), 2).state_dict()
    assert {key.split(".")[0] for key in keys} == {"trunk", "head"}

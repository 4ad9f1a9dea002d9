"""The configs in configs/: parameter counts, exactly, and every setting that makes a preset what it is."""

from pathlib import Path

import pytest
import torch

from sagan.config.load import Config, load_config
from sagan.models.generator import build_discriminator, build_generator

CONFIGS = Path(__file__).parents[2] / "configs"
ATTENTION_AT_64 = ["generator.attention={64: self_attention}", "discriminator.attention={64: self_attention}"]
BARE = ["generator.spectral_norm=false", "discriminator.spectral_norm=false"]  # builds faster, with as many parameters


def counts(config: Config) -> tuple[int, ...]:
    """Parameters of generator and discriminator, built without memory or time."""
    classes = config.data.num_classes or 0
    with torch.device("meta"):
        networks = build_generator(config, classes), build_discriminator(config, classes)
    return tuple(sum(parameter.numel() for parameter in network.parameters()) for network in networks)


@pytest.mark.parametrize(
    ("preset", "overrides", "generator", "discriminator"),
    [
        ("official128", [], 42_078_852, 39_463_618),
        ("official128", ATTENTION_AT_64, 42_017_412, 39_448_258),
        ("biggan128", [], 42_017_412, 39_448_258),
        ("studio32", [], 4_386_308, 1_075_586),
        ("studio64", [], 13_387_396, 19_752_642),
        ("studio128", [], 42_017_412, 39_448_258),
        ("mmgen32", [], 4_386_308, 1_075_586),
        ("mmgen128", [], 42_017_412, 39_448_258),
        ("biggan-cifar10", [], 9_416_196, 2_415_170),
        ("biggan-imagenet128", [], 70_433_988, 87_982_370),
        ("cifar10", [], 4_386_308, 1_075_586),
        ("imagenet128", [], 42_017_412, 39_448_258),
    ],
)
def test_published_parameter_counts(preset: str, overrides: list[str], generator: int, discriminator: int):
    """Those of the released code, BigGAN-PyTorch, StudioGAN and mmgeneration."""
    assert counts(load_config(CONFIGS / f"{preset}.yaml", [*overrides, *BARE])) == (generator, discriminator)


def test_parameters_at_256_pixels():
    """BigGAN's 256 px networks with z 140 are the default widths, with its channels and conditioning."""
    biggan = [
        "generator={channels: 96, z_dim: 140, class_norm: shared, hierarchical: true}",
        "discriminator.channels=96",
    ]
    config = load_config(None, ["data.resolution=256", "data.num_classes=1000", *biggan, *BARE])
    assert counts(config) == (82_235_844, 99_225_890)


def summary(name: str) -> dict:
    """What sets a preset apart, in one flat dict."""
    config = load_config(CONFIGS / f"{name}.yaml")
    generator, discriminator, optim = config.generator, config.discriminator, config.optim
    assert generator.init == discriminator.init
    assert generator.spectral_norm_eps == discriminator.spectral_norm_eps
    assert optim.generator.betas == optim.discriminator.betas
    return {
        "lr": (optim.generator.lr, optim.discriminator.lr),
        "betas": optim.generator.betas,
        "d_steps": config.d_steps,
        "batch": (config.training.batch_size, optim.accumulation),
        "steps": config.training.steps,
        "ema": (config.ema.decay, config.ema.start),
        "flip": config.data.flip,
        "init": generator.init,
        "spectral_norm_eps": generator.spectral_norm_eps,
        "norm": (generator.norm_eps, generator.norm_momentum, generator.last_norm_momentum),
        "class_norm": generator.class_norm,
        "relu_shortcut": discriminator.relu_shortcut,
    }


OFFICIAL = {
    "lr": (1e-4, 4e-4),
    "betas": (0.0, 0.999),
    "d_steps": 1,
    "batch": (256, 1),
    "steps": 1_000_000,
    "ema": (0.0, 0),
    "flip": False,
    "init": "xavier",
    "spectral_norm_eps": 1e-12,
    "norm": (1e-5, 0.001, 0.0001),
    "class_norm": "table",
    "relu_shortcut": False,
}
PLAIN_NORM = {"norm": (1e-5, 0.1, None)}
CIFAR = {"lr": (2e-4, 2e-4), "betas": (0.5, 0.999), "d_steps": 5, "batch": (64, 1), "steps": 100_000}
STUDIO = {
    "init": "orthogonal",
    "spectral_norm_eps": 1e-6,
    "norm": (1e-4, 0.1, None),
    "class_norm": "linear",
    "relu_shortcut": True,
}
BIGGAN = PLAIN_NORM | {"spectral_norm_eps": 1e-8, "batch": (256, 2), "ema": (0.9999, 2000), "steps": 500_000}
BIGGAN_LARGE = PLAIN_NORM | {
    "init": "orthogonal",
    "spectral_norm_eps": 1e-6,
    "class_norm": "shared",
    "batch": (2048, 8),
    "ema": (0.9999, 20_000),
    "steps": 150_000,
}
MMGEN32 = STUDIO | CIFAR | {"spectral_norm_eps": 1e-12, "relu_shortcut": False, "flip": True}
MMGEN128 = BIGGAN | {"ema": (0.999, 2000), "batch": (256, 1), "steps": 1_000_000}


@pytest.mark.parametrize(
    ("preset", "differences"),
    [
        ("official128", {}),
        ("biggan128", BIGGAN),
        ("studio32", STUDIO | CIFAR),
        ("studio64", STUDIO),
        ("studio128", STUDIO),
        ("mmgen32", MMGEN32),
        ("mmgen128", MMGEN128),
        ("biggan-cifar10", STUDIO | CIFAR | {"class_norm": "shared", "ema": (0.9999, 1000)}),
        ("biggan-imagenet128", BIGGAN_LARGE),
        ("cifar10", MMGEN32 | {"ema": (None, 0)}),
        ("imagenet128", MMGEN128 | {"batch": (256, 4)}),
    ],
)
def test_settings(preset: str, differences: dict):
    """Each preset differs from official128 in exactly these settings."""
    assert summary(preset) == OFFICIAL | differences


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_has_a_description(path: Path):
    """Every config loads and starts with a one-line description."""
    load_config(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 92

"""The configs in configs/: parameter counts, exactly, and every setting that makes a preset what it is."""

from operator import attrgetter
from pathlib import Path

import pytest
import torch

from sagan.config.load import Config, load_config
from sagan.models.generator import build_discriminator, build_generator

CONFIGS = Path(__file__).parents[2] / "configs"
ATTENTION_AT_64 = ["generator.attention={64: self_attention}", "discriminator.attention={64: self_attention}"]
BIGGAN_256 = [
    "data.resolution=256",
    "data.num_classes=1000",
    "generator={channels: 96, z_dim: 140, class_norm: shared, hierarchical: true}",
    "discriminator.channels=96",
]
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
        ("imagenet128", [], 42_017_412, 39_448_258),
        (None, BIGGAN_256, 82_235_844, 99_225_890),
    ],
)
def test_published_parameter_counts(preset: str | None, overrides: list[str], generator: int, discriminator: int):
    """Those of the released code, BigGAN-PyTorch, StudioGAN and mmgeneration."""
    config = load_config(CONFIGS / f"{preset}.yaml" if preset else None, [*overrides, *BARE])
    assert counts(config) == (generator, discriminator)


OFFICIAL = {
    "optim.generator.lr": 1e-4, "optim.discriminator.lr": 4e-4, "optim.generator.betas": (0.0, 0.999),
    "optim.discriminator.betas": (0.0, 0.999), "d_steps": 1, "training.batch_size": 256, "optim.accumulation": 1,
    "training.steps": 1_000_000, "ema.decay": 0.0, "ema.start": 0, "data.flip": False,
    "generator.init": "xavier", "discriminator.init": "xavier",
    "generator.spectral_norm_eps": 1e-12, "discriminator.spectral_norm_eps": 1e-12,
    "generator.norm_eps": 1e-5, "generator.norm_momentum": 0.001, "generator.last_norm_momentum": 0.0001,
    "generator.class_norm": "table", "discriminator.relu_shortcut": False,
}  # fmt: skip


def both(setting: str, value: object) -> dict:
    return {f"{network}.{setting}": value for network in ("generator", "discriminator")}


def ema(decay: float | None, start: int) -> dict:
    return {"ema.decay": decay, "ema.start": start}


def batch(size: int, accumulation: int, steps: int) -> dict:
    return {"training.batch_size": size, "optim.accumulation": accumulation, "training.steps": steps}


ORTHOGONAL = both("init", "orthogonal") | both("spectral_norm_eps", 1e-6)
PLAIN_NORM = {"generator.norm_momentum": 0.1, "generator.last_norm_momentum": None}
CIFAR = {
    **{f"optim.{setting}": value for setting, value in (both("lr", 2e-4) | both("betas", (0.5, 0.999))).items()},
    "d_steps": 5, **batch(64, 1, 100_000),
}  # fmt: skip
STUDIO = ORTHOGONAL | PLAIN_NORM | {
    "generator.norm_eps": 1e-4, "generator.class_norm": "linear", "discriminator.relu_shortcut": True,
}  # fmt: skip
BIGGAN = PLAIN_NORM | both("spectral_norm_eps", 1e-8) | batch(256, 2, 500_000) | ema(0.9999, 2000)
SHARED = {"generator.class_norm": "shared"}
MMGEN32 = STUDIO | CIFAR | both("spectral_norm_eps", 1e-12) | {"discriminator.relu_shortcut": False, "data.flip": True}
SMALL_STUDIO = MMGEN32 | {name: OFFICIAL[name] for name in CIFAR} | {"optim.generator.lr": 2e-4, "d_steps": 2}
MMGEN128 = BIGGAN | ema(0.999, 2000) | batch(256, 1, 1_000_000)


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
        ("biggan-cifar10", STUDIO | CIFAR | SHARED | ema(0.9999, 1000)),
        ("biggan-imagenet128", PLAIN_NORM | ORTHOGONAL | SHARED | batch(2048, 8, 150_000) | ema(0.9999, 20_000)),
        ("cifar10", SMALL_STUDIO | SHARED | batch(128, 1, 22_500) | ema(None, 0)),
        ("imagenet128", MMGEN128 | batch(256, 4, 1_000_000)),
    ],
)
def test_settings(preset: str, differences: dict):
    """Of these settings, each preset differs from official128 in exactly the given ones."""
    config = load_config(CONFIGS / f"{preset}.yaml")
    assert {name: attrgetter(name)(config) for name in OFFICIAL} == OFFICIAL | differences


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_has_a_description(path: Path):
    load_config(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 92

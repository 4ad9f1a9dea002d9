"""The configs in configs/: parameter counts, exactly, and every setting that makes a preset what it is."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from sagan.config.load import Config, load_config
from sagan.models.generator import build_discriminator, build_generator

CONFIGS = Path(__file__).parents[2] / "configs"
ATTENTION_AT_64 = ["generator.attention={64: self_attention}", "discriminator.attention={64: self_attention}"]
BARE = ["generator.spectral_norm=false", "discriminator.spectral_norm=false"]  # builds faster, with as many parameters
G32, D32 = [256, 256, 256, 256], [128, 128, 128, 128]
G64, D64 = [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024]
G128, D128 = [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024]
G256, D256 = [1024, 1024, 512, 512, 256, 128, 64], [64, 128, 256, 512, 512, 1024, 1024]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def counts(config: Config, num_classes: int | None = None) -> tuple[int, int]:
    """Parameters of generator and discriminator, built without memory or time."""
    classes = config.data.num_classes if num_classes is None else num_classes
    assert classes is not None
    with torch.device("meta"):
        return count(build_generator(config, classes)), count(build_discriminator(config, classes))


def attention_parameters(channels: int) -> int:
    """Query and key C·C/8, value and out C·C/2, gamma; no biases."""
    return 2 * channels * (channels // 8) + 2 * channels * (channels // 2) + 1


def generator_parameters(widths: list[int], classes: int, attention: int) -> int:
    """By hand, from the block equations: `attention` is its resolution."""
    total = 128 * 16 * widths[0] + 16 * widths[0]
    for i, (a, b) in enumerate(pairwise(widths)):
        total += 9 * a * b + b + 9 * b * b + b + a * b + b  # conv1, conv2, shortcut
        total += 2 * max(classes, 1) * (a + b)  # gain and bias before each 3×3
        total += attention_parameters(b) if 8 << i == attention else 0
    return total + 2 * widths[-1] + 9 * widths[-1] * 3 + 3


def discriminator_parameters(widths: list[int], classes: int, attention: int, resolution: int) -> int:
    """By hand; a block's shortcut is a 1×1 convolution where it down-samples or changes the width."""
    total, size = 0, resolution
    down = {32: 2, 64: 4, 128: 5, 256: 6}[resolution]
    for i, (a, b) in enumerate(zip([3, *widths], widths, strict=False)):
        total += 9 * a * b + b + 9 * b * b + b
        total += a * b + b if i < down or a != b else 0
        if i < down:
            size //= 2
            total += attention_parameters(b) if size == attention else 0
    return total + widths[-1] + 1 + classes * widths[-1]


@pytest.mark.parametrize(
    ("preset", "overrides", "generator", "discriminator"),
    [
        ("official128", BARE, 42_078_852, 39_463_618),
        ("official128", [*ATTENTION_AT_64, *BARE], 42_017_412, 39_448_258),
        ("studio32", [], 4_386_308, 1_075_586),
        ("studio64", BARE, 13_387_396, 19_752_642),
    ],
)
def test_published_parameter_counts(preset: str, overrides: list[str], generator: int, discriminator: int):
    """Parameter counts equal those of the original implementations."""
    assert counts(load_config(CONFIGS / f"{preset}.yaml", overrides)) == (generator, discriminator)


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator", "classes", "attention", "resolution"),
    [
        ("official128", G128, D128, 1000, 32, 128),
        ("biggan128", G128, D128, 1000, 64, 128),
        ("studio32", G32, D32, 10, 16, 32),
        ("studio64", G64, D64, 200, 32, 64),
        ("studio128", G128, D128, 1000, 64, 128),
        ("mmgen32", G32, D32, 10, 16, 32),
        ("mmgen128", G128, D128, 1000, 64, 128),
        ("cifar10", G32, D32, 10, 16, 32),
        ("imagenet128", G128, D128, 1000, 64, 128),
        ("folder64", G64, D64, 0, 32, 64),
    ],
)
def test_parameters_by_hand(
    preset: str, generator: list, discriminator: list, classes: int, attention: int, resolution: int
):
    """Parameter counts equal those computed from widths, classes and attention placement."""
    expected = (
        generator_parameters(generator, classes, attention),
        discriminator_parameters(discriminator, classes, attention, resolution),
    )
    assert counts(load_config(CONFIGS / f"{preset}.yaml", BARE), classes) == expected


def test_parameters_at_256_pixels():
    """The default widths at 256 px are BigGAN's."""
    expected = (generator_parameters(G256, 0, 64), discriminator_parameters(D256, 0, 64, 256))
    assert counts(load_config(None, ["data.resolution=256", *BARE]), 0) == expected


def summary(name: str) -> dict:
    """What the table of presets says of one, in one flat dict."""
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

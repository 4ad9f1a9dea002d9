"""Fine-tuning: the weights of a run or a snapshot in a new GAN, whose classes may differ."""

import copy
from pathlib import Path

import pytest
import torch
from tiny import assert_same_state, tiny_config, tiny_gan
from torch import Tensor, nn

from sagan.layers.spectral_norm import hold_state
from sagan.models.gan import GAN
from sagan.models.generator import Generator
from sagan.runs.checkpoint import Progress, save_checkpoint
from sagan.runs.snapshot import load_snapshot, save_snapshot
from sagan.training.ema import ema_generator
from sagan.training.finetune import initialize_from
from sagan.utils.errors import UserError

TABLE: tuple[str, ...] = ()
LINEAR = ("generator.class_norm=linear",)
SHARED = ("generator.class_norm=shared", "generator.shared_dim=6")
BIGGAN = (*SHARED, "generator.hierarchical=true", "loss.lecam=1")
BARE = ("generator.spectral_norm=false", "discriminator.spectral_norm=false")
NORMS = pytest.mark.parametrize(
    "norm",
    [TABLE, LINEAR, BARE, LINEAR + BARE, SHARED, BIGGAN],
    ids=["table", "linear", "bare", "bare-linear", "shared", "biggan"],
)
KINDS = pytest.mark.parametrize("kind", ["run", "snapshot"])


def source_of(folder: Path, kind: str, num_classes: int, norm: tuple[str, ...] = TABLE) -> tuple[GAN, str]:
    """A GAN that has been trained, written as a run or as a snapshot."""
    config = tiny_config(*norm)
    gan = tiny_gan(config, num_classes, torch.float32)
    with torch.no_grad():
        for parameter in gan.ema.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(folder / "run" / "checkpoints" / "00000007", gan, Progress(7))
    (folder / "run" / "config.yaml").write_text(config.to_yaml())
    save_snapshot(ema_generator(gan.ema), folder / "snapshot")
    return gan, str(folder / kind)


def fresh(num_classes: int, *overrides: str) -> GAN:
    """A GAN of another seed, to be initialized."""
    return tiny_gan(tiny_config("seed=5", *overrides), num_classes, torch.float32)


def images(generator: nn.Module, labels: Tensor | None) -> Tensor:
    """In eval mode."""
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return generator.eval()(z, labels)


def evenly(num_classes: int) -> Tensor | None:
    """Labels that mix the gains and biases of all classes."""
    return torch.full((3, num_classes), 1 / num_classes) if num_classes else None


def logits(gan: GAN, labels: Tensor | None) -> Tensor:
    reals = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(), hold_state(gan.discriminator):
        return gan.discriminator(reals, labels).logits


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@NORMS
def test_same_classes_from_a_run(tmp_path: Path, norm: tuple[str, ...]) -> None:
    old, source = source_of(tmp_path, "run", 4, norm)
    gan = fresh(4, *norm)
    assert "00000007" in initialize_from(gan, source)
    for network, origin in ((gan.generator, old.ema), (gan.ema, old.ema),
                            (gan.discriminator, old.discriminator)):  # fmt: skip
        for name, parameter in parameters(network).items():
            assert torch.equal(parameter, parameters(origin)[name]), name
    for name, buffer in gan.generator.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, old.ema.state_dict()[name]), name
    assert_same_state(gan.ema, gan.generator.state_dict())


@NORMS
def test_same_classes_from_a_snapshot(tmp_path: Path, norm: tuple[str, ...]) -> None:
    _, source = source_of(tmp_path, "snapshot", 4, norm)
    gan = fresh(4, *norm)
    critic = copy.deepcopy(gan.discriminator.state_dict())
    assert "the discriminator starts from scratch" in initialize_from(gan, source)
    snapshot = load_snapshot(source)
    for name, parameter in parameters(gan.generator).items():
        baked = name.replace("parametrizations.weight.original", "weight")
        assert torch.equal(parameter, parameters(snapshot)[baked]), name
    labels = torch.tensor([0, 1, 3])
    torch.testing.assert_close(images(gan.generator, labels), images(snapshot, labels), rtol=0, atol=1e-2)
    assert_same_state(gan.discriminator, critic)


@KINDS
@pytest.mark.parametrize(
    ("norm", "before", "after"),
    [
        *((norm, *counts) for norm in (TABLE, BARE, LINEAR + BARE) for counts in ((4, 7), (4, 2), (4, 0), (0, 3))),
        (LINEAR, 4, 0), (SHARED, 4, 7), (BIGGAN, 4, 7),
    ],
    ids=str,
)  # fmt: skip
def test_new_classes_start_at_the_mean_of_the_old(
    tmp_path: Path, kind: str, norm: tuple[str, ...], before: int, after: int
) -> None:
    old, source = source_of(tmp_path, kind, before, norm)
    gan = fresh(after, *norm)
    initialize_from(gan, source)
    expected = images(ema_generator(old.ema), evenly(before))
    for label in range(max(after, 1)):
        labels = torch.full((3,), label) if after else None
        torch.testing.assert_close(images(ema_generator(gan.ema), labels), expected, rtol=0, atol=1e-2)
    assert gan.generator.shared is None or gan.generator.shared.weight.mean(0).any()


@pytest.mark.parametrize(
    ("before", "after", "classes"),
    [(SHARED, TABLE, 4), (LINEAR, SHARED, 4), (SHARED, BIGGAN, 4), (BIGGAN, SHARED, 7), (BIGGAN, BIGGAN, 0)],
    ids=["shared-table", "linear-shared", "shared-biggan", "biggan-shared", "no-classes"],
)
def test_another_conditioning_is_refused(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...], classes: int
) -> None:
    _, source = source_of(tmp_path, "snapshot", 4, before)
    with pytest.raises(UserError, match="must be as in the source"):
        initialize_from(fresh(classes, *after), source)


@KINDS
def test_linear_classes_become_one(tmp_path: Path, kind: str) -> None:
    old, source = source_of(tmp_path, kind, 4, LINEAR)
    gan = fresh(0, *LINEAR)
    initialize_from(gan, source)
    for before, after in zip(ema_generator(old.ema).blocks, ema_generator(gan.ema).blocks, strict=True):
        for was, now in ((before.norm1, after.norm1), (before.norm2, after.norm2)):
            torch.testing.assert_close(now.weight, 1 + was.gain.weight.mean(1), rtol=0, atol=1e-3)
            torch.testing.assert_close(now.bias, was.bias.weight.mean(1), rtol=0, atol=1e-3)


@KINDS
@pytest.mark.parametrize(("before", "after"), [(4, 7), (8, 3), (0, 3)], ids=str)
def test_new_linear_classes_are_equal_and_point_to_the_mean(tmp_path: Path, kind: str, before: int, after: int) -> None:
    old, source = source_of(tmp_path, kind, before, LINEAR)
    gan = fresh(after, *LINEAR)
    initialize_from(gan, source)
    was, now = ema_generator(old.ema).blocks[1].norm2, ema_generator(gan.ema).blocks[1].norm2
    gains, biases = (was.gain.weight.mean(1), was.bias.weight.mean(1)) if before else (was.weight - 1, was.bias)
    for found, mean in ((now.gain.weight, gains), (now.bias.weight, biases)):
        assert found.shape == (8, after)
        for column in found.T:
            torch.testing.assert_close(column, found[:, 0])
            assert torch.cosine_similarity(column, mean, dim=0) > 0.999


@pytest.mark.parametrize(
    ("before", "after", "norm"), [(4, 6, TABLE), (4, 6, BARE), (4, 0, TABLE), (0, 4, TABLE)], ids=str
)
def test_discriminator_of_a_run_gets_new_classes(
    tmp_path: Path, before: int, after: int, norm: tuple[str, ...]
) -> None:
    old, source = source_of(tmp_path, "run", before, norm)
    gan = fresh(after, *norm)
    initialize_from(gan, source)
    found, origin = parameters(gan.discriminator), parameters(old.discriminator)
    for name, parameter in found.items():
        if ".embedding." not in name:
            assert torch.equal(parameter, origin[name]), name
        elif before:
            torch.testing.assert_close(parameter, origin[name].mean(0).expand(after, -1))
    assert torch.isfinite(logits(gan, torch.tensor([0, 3, 1]) if after else None)).all()


WIDTHS = tuple(f"{network}.widths=[4, 4, 4, 4, 4]" for network in ("generator", "discriminator"))


@pytest.mark.parametrize("classes", [4, 3], ids=["same-classes", "other-classes"])
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *((kind, overrides) for kind in ("run", "snapshot") for overrides in (
            ["generator.channels=4"], ["generator.z_dim=16"], ["generator.attention={}"],
            ["generator.attention={16: self_attention}"], ["data.resolution=64", *WIDTHS])),
        ("run", ["discriminator.channels=4"]),
        ("run", ["discriminator.attention={16: self_attention}"]),
    ],
    ids=str,
)  # fmt: skip
def test_another_architecture_is_refused(tmp_path: Path, kind: str, overrides: list[str], classes: int) -> None:
    _, source = source_of(tmp_path, kind, 4)
    with pytest.raises(UserError, match=r"shape|missing|not part") as caught:
        initialize_from(fresh(classes, *overrides), source)
    assert source in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_linear_classes_become_a_table(tmp_path: Path) -> None:
    old, source = source_of(tmp_path, "snapshot", 8, LINEAR)
    gan = fresh(8, *TABLE)
    initialize_from(gan, source)
    labels = torch.tensor([1, 4, 6])
    expected = images(ema_generator(old.ema), labels)
    torch.testing.assert_close(images(ema_generator(gan.ema), labels), expected, rtol=0, atol=1e-2)


def test_a_generator_goes_on_learning(tmp_path: Path) -> None:
    _, source = source_of(tmp_path, "run", 4)
    gan = fresh(6)
    initialize_from(gan, source)
    assert isinstance(gan.generator, Generator)
    assert gan.generator.training
    assert all(parameter.requires_grad for parameter in gan.generator.parameters())
    with torch.no_grad():
        gan.generator.blocks[0].norm1.gain.weight[0] += 1
    rows = gan.generator.blocks[0].norm1.gain.weight
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(gan.ema.blocks[0].norm1.gain.weight[0], rows[0])

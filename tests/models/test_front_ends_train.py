"""Every front-end in both updates: all learn, micro-batches add up, state moves once, half precision, files, maps."""

import copy
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from command_line import sagan
from front_ends import FRONT_ENDS, front_end, front_end_config, judged
from tiny import CLASSES, assert_same_bits, log_of, one_process, tiny_batches, tiny_gan, write_config
from torch import Tensor, nn

from sagan.attention import record_attention
from sagan.data.dataset import PreparedData
from sagan.layers.spectral_norm import hold_state, power_iterations, spectral_norms
from sagan.models.frontends import cut_patches
from sagan.runs.checkpoint import Progress, load_checkpoint, load_discriminator, save_checkpoint
from sagan.training.losses import LOSSES, GradientPenalty, Objective
from sagan.training.step import LatentBatch, RealBatch, discriminator_step, generator_step

each = pytest.mark.parametrize("name", list(FRONT_ENDS))
R1 = Objective(LOSSES["non_saturating"], [GradientPenalty("r1", 0.5, "reals")])


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Of every parameter: one without would let processes wait for each other for ever."""
    assert all(p.grad is not None for p in network.parameters())
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def joined(a: RealBatch | LatentBatch, b: RealBatch | LatentBatch) -> RealBatch | LatentBatch:
    """Both micro-batches as one."""
    pairs = ((getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return type(a)(*(None if x is None else torch.cat([x, y]) for x, y in pairs))


def idle(network: nn.Module) -> list[str]:
    """Parameters whose gradient is 0."""
    return [name for name, gradient in gradients(network).items() if gradient.abs().max() == 0]


@each
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_all_learn_and_micro_batches_add_up(name: str, classes: int):
    """All parameters get gradients; two micro-batches give the gradient of one batch."""
    ranked = [] if name == "coarse_to_fine" else ["discriminator.frontend.margin=100"]  # so that every image counts
    config = front_end_config(FRONT_ENDS[name], *ranked)
    batches = tiny_batches(config, 2, 2, num_classes=classes)
    found = []
    for given in (batches, [tuple(joined(*pair) for pair in zip(*batches, strict=True))]):
        gan = tiny_gan(config, classes)
        gan.generator.eval()  # its fakes do not depend on their batch
        logs = discriminator_step(gan, R1, given, one_process())
        assert ("hint" if name == "coarse_to_fine" else "rank") in logs
        found.append(gradients(gan.discriminator))
        assert idle(gan.discriminator) == []
        gan.generator.train()
        generator_step(gan, R1, [draws for _, draws in given], one_process())
        assert idle(gan.generator) == []
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_a_discriminator_is_told_what_is_real():
    config = front_end_config(FRONT_ENDS["zoom"])
    gan, batches, told = tiny_gan(config), tiny_batches(config, 2, 3), []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2:]))
    discriminator_step(gan, R1, batches, one_process())
    assert [said.tolist() for (said,) in told] == [[True] * 3 + [False] * 3] * 2
    told.clear()
    generator_step(gan, R1, [draws for _, draws in batches], one_process())
    assert told == [(), ()]


@each
def test_state_moves_once_a_forward(name: str):
    """Each spectral norm makes one power iteration per forward, and none while held."""
    discriminator = front_end(FRONT_ENDS[name])
    once = copy.deepcopy(discriminator)
    before = {key: tensor.clone() for key, tensor in discriminator.state_dict().items()}
    with hold_state(discriminator):
        discriminator(*judged(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in discriminator.state_dict().items())
    for _, norm, weight in spectral_norms(once):
        power_iterations([(norm, weight)])
    discriminator(*judged(2))
    torch.testing.assert_close(dict(discriminator.state_dict()), dict(once.state_dict()), rtol=1e-12, atol=1e-12)


@each
def test_half_precision(name: str):
    discriminator = front_end(FRONT_ENDS[name]).float()
    images, labels, reals = judged(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, penalties = discriminator(images.float(), labels, reals)
    assert torch.isfinite(logits).all()
    (logits.float().sum() + sum(penalties.values())).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(discriminator).values())
    assert images.grad is not None


@each
def test_recording_changes_nothing(name: str):
    heard, plain = front_end(FRONT_ENDS[name]), front_end(FRONT_ENDS[name])
    with record_attention(heard, torch.rand(4, 2, 2)) as maps:
        logits = heard(*judged(4)).logits
    assert torch.equal(logits, plain(*judged(4)).logits)
    torch.testing.assert_close(dict(heard.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    boxes = {"coarse_to_fine": 5, "zoom": 3, "masked": 2}[name]
    found = {key: (m.kind, tuple(m.weights.shape)) for key, m in maps.items()}
    rows = {"trunk.attention.8x8": ("softmax row", (4, 1, 2, 4, 4))}
    if name == "coarse_to_fine":
        rows["frontend.fine.attention.8x8"] = ("softmax row", (4, boxes, 2, 4, 4))
        own = {"frontend/saliency": ("saliency", (4, 1, 1, 8, 8)), "frontend/patches": ("boxes", (4, boxes, 1, 1, 4))}
    else:
        rows |= {f"frontend.trunks.{i}.attention.8x8": ("softmax row", (4, 1, 2, 4, 4)) for i in range(boxes - 1)}
        own = {"frontend": ("boxes", (4, boxes, 1, 1, 4))}
    assert found == rows | own
    assert not any(m.weights.requires_grad for m in maps.values())


def test_maps_of_patches_stand_as_heads_of_their_image():
    discriminator = front_end(FRONT_ENDS["coarse_to_fine"]).eval()
    images, labels, _ = judged(3)
    points = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    with record_attention(discriminator, points) as maps, torch.no_grad():
        discriminator(images, labels)
    corners = (maps["frontend/patches"].weights[:, :, 0, 0, :2] * 32).round().long()
    patches = cut_patches(images, corners, 16)
    for b in range(3):
        with record_attention(discriminator.frontend.fine, points[b]) as expected, torch.no_grad():
            discriminator.frontend.fine(patches[b])
        found = maps["frontend.fine.attention.8x8"].weights[b]
        torch.testing.assert_close(found, expected["attention.8x8"].weights[:, 0])


@each
def test_checkpoint_round_trip(name: str, tmp_path: Path):
    config = front_end_config(FRONT_ENDS[name])
    gan, other = tiny_gan(config), tiny_gan(config.model_copy(update={"seed": 1}))
    discriminator_step(gan, R1, tiny_batches(config, 1, 2), one_process())
    save_checkpoint(tmp_path / "c", gan, Progress(1))
    load_checkpoint(tmp_path / "c", other)
    assert_same_bits(gan, other)


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("frontend", ["coarse_to_fine", "zoom"])
def test_the_command_trains(frontend: str, tmp_path: Path, data: PreparedData):
    config = write_config(tmp_path / "c.yaml", data, training={"steps": 1, "batch_size": 4},
                          discriminator={"channels": 4, "frontend": frontend})  # fmt: skip
    run = tmp_path / "run"
    assert sagan("train", config, "--dry-run") == 0
    assert sagan("train", config, "--out", run) == 0
    assert sagan("train", config, "--out", run, "--set", "training.steps=2") == 0
    log = log_of(run)
    assert [line["step"] for line in log] == [1, 2]
    assert {"coarse_to_fine": "hint", "zoom": "rank"}[frontend] in log[0]
    assert load_discriminator(run / "checkpoints" / "00000002").frontend is not None

"""coarse_to_fine against a loop over images, cells and slices; where patches lie; what it costs."""

import math

import pytest
import torch
from front_ends import COARSE_TO_FINE, front_end, front_end_config, judged
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sagan.config.load import load_config
from sagan.models.discriminator import Discriminator, Trunk
from sagan.models.frontends import CoarseToFine, cut_patches, patch_corners
from sagan.training.losses import gradient_penalty

PATCHES, PATCH, HINT = 5, 16, 0.3  # those of COARSE_TO_FINE
FRONT = "discriminator.frontend=coarse_to_fine"


def by_loops(discriminator: Discriminator, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (B,) and hint (); trunks and head are functions here."""
    fine_trunk, head = discriminator.frontend.fine, discriminator.head
    logits, hints = [], []
    for b in range(len(images)):
        coarse = discriminator.trunk(images[b : b + 1])[0]  # (C, 8, 8)
        slope = head.linear.weight[0]
        if labels is not None:
            slope = slope + head.embedding.weight[labels[b]]
        saliency = {(i, j): (slope * (coarse[:, i, j] > 0)).norm().item() for i in range(8) for j in range(8)}
        chosen = sorted(saliency, key=lambda cell: -saliency[cell])[:PATCHES]
        cells = {(i, j): coarse[:, i, j] for i in range(8) for j in range(8)}
        hint = 0.0
        for i, j in chosen:
            top, left = (min(max(4 * at + 2 - PATCH // 2, 0), 32 - PATCH) for at in (i, j))
            vector = fine_trunk(images[b : b + 1, :, top : top + PATCH, left : left + PATCH])[0].mean((1, 2))
            hint = hint + ((coarse[:, i, j] - vector.detach()) ** 2).sum()
            cells[i, j] = vector
        refined = torch.stack([torch.stack([cells[i, j] for j in range(8)], -1) for i in range(8)], -2)  # (C, 8, 8)
        logits.append(head(refined[None], None if labels is None else labels[b : b + 1])[0])
        hints.append(hint)
    return torch.stack(logits), HINT * sum(hints) / len(images)


@pytest.mark.parametrize(("classes", "r1"), [(0, False), (4, True)])
def test_equals_the_loop(classes: int, r1: bool):
    """Cells, patches, the hint, and first and second derivatives equal the loop."""
    discriminator = front_end(COARSE_TO_FINE, classes).eval()
    images, labels, reals = judged(3, classes)
    weight = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits, penalties = discriminator(images, labels, reals)
        expected, hint = by_loops(discriminator, images, labels)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(penalties["hint"], hint, rtol=1e-10, atol=1e-10)
        gradients = []
        for values, penalty in ((logits, penalties["hint"]), (expected, hint)):
            loss = (values * weight).sum() + penalty + (gradient_penalty(images, values) if r1 else 0)
            gradients.append(torch.autograd.grad(loss, [images, *discriminator.parameters()]))
    for name, found, by_loop in zip(["images", *dict(discriminator.named_parameters())], *gradients, strict=True):
        atol = 1e-10 * float(by_loop.abs().max().clamp(min=1))
        torch.testing.assert_close(found, by_loop, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        assert found.abs().max() > 0, name


def test_hint_reaches_the_coarse_trunk_alone():
    discriminator = front_end(COARSE_TO_FINE)
    discriminator(*judged(2)).penalties["hint"].backward()
    assert {n.split(".")[0] for n, p in discriminator.named_parameters() if p.grad is not None} == {"trunk"}
    assert front_end("{name: coarse_to_fine, hint: 0}")(*judged(2)).penalties == {}


@pytest.mark.parametrize(
    ("side", "resolution", "patch"), [(8, 32, 8), (8, 32, 16), (4, 32, 9), (8, 128, 32), (8, 32, 4)]
)
def test_patches_lie_at_their_cells(side: int, resolution: int, patch: int):
    """A patch is centered on its cell, half a pixel to the right if its side is odd, and moved inside the image."""
    cell, corners = resolution // side, patch_corners(torch.arange(side * side)[None], side, resolution, patch)[0]
    start = [min(max(math.ceil((at + 0.5) * cell - patch / 2), 0), resolution - patch) for at in range(side)]
    assert corners.tolist() == [[top, left] for top in start for left in start]
    images = torch.randn(1, 3, resolution, resolution)
    for found, (top, left) in zip(cut_patches(images, corners[None], patch)[0], corners.tolist(), strict=True):
        assert torch.equal(found, images[0, :, top : top + patch, left : left + patch])


def macs(trunk: Trunk, batch: int, size: int) -> int:
    """Multiply-adds of a forward of `batch` images."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trunk(torch.zeros(batch, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("resolution", "least", "most"), [(32, 0.7, 0.9), (128, 0.6, 0.9)])
def test_cheaper_than_the_plain_trunk(resolution: int, least: float, most: float):
    with torch.device("meta"):
        plain, coarse_to_fine = (
            Discriminator(load_config(None, [f"data.resolution={resolution}", *settings]).discriminator, resolution, 0)
            for settings in (["discriminator.attention={}"], ["discriminator.attention={}", FRONT])
        )
    frontend, whole = coarse_to_fine.frontend, macs(plain.trunk, 16, resolution)
    patches = macs(frontend.fine, 16 * frontend.settings.patches, frontend.patch)
    assert least < (macs(coarse_to_fine.trunk, 16, resolution) + patches) / whole < most


def test_what_is_built():
    """Widths, patch size and feature map follow the settings."""
    config = front_end_config("{name: coarse_to_fine, cells: 4, coarse_width: 0.25}", "data.resolution=64",
                              "discriminator.channels=16", "generator.attention={}", "discriminator.attention={}",
                              "discriminator.widths=[1,2,4,8,16]", "generator.widths=[16,8,4,2,1]")  # fmt: skip
    discriminator = Discriminator(config.discriminator, 64, 0)
    assert isinstance(discriminator.frontend, CoarseToFine)
    assert discriminator.frontend.patch == 32
    assert [block.conv1.out_channels for block in discriminator.trunk.blocks] == [4, 8, 16, 32, 64]
    assert [block.conv1.out_channels for block in discriminator.frontend.fine.blocks] == [16, 32, 64, 128, 64]
    assert discriminator.trunk(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 4, 4)

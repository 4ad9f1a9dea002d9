"""zoom against loops over images, scales and pixels: logits, boxes, both losses, and who learns from which."""

import pytest
import torch
import torch.nn.functional as F
from front_ends import MASKED, ZOOM, front_end, front_end_config, judged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagan.attention import record_attention
from sagan.models.discriminator import Discriminator
from sagan.models.frontends import SHARPNESS, box_from_shares, boxcar, edges, within, zoom
from sagan.models.generator import build_discriminator
from sagan.training.losses import LOSSES, gradient_penalty

OPTIONS = {ZOOM: (16, 1 / 3, 0.4, 0.7, False), MASKED: (32, 0.2, 0.05, 1.0, True)}


def bilinear(image: Tensor, box: Tensor, size: int) -> Tensor:
    """The part of one image (3, R, R) inside (tx, ty, tl): a pixel's weight falls linearly with its distance."""
    side = image.shape[2]
    weights = []
    for center in (box[1], box[0]):  # of the rows, of the columns
        places = [(center + box[2] * ((2 * i + 1) / size - 1) + 1) * side / 2 - 0.5 for i in range(size)]
        near = [torch.stack([(1 - (at.clamp(0, side - 1) - r).abs()).clamp(min=0) for r in range(side)])
                for at in places]  # fmt: skip
        weights.append(torch.stack(near))  # (size, R)
    return torch.einsum("ir,krc,jc->kij", weights[0], image, weights[1])


def mask_of(box: Tensor, side: int) -> Tensor:
    """M of one box (R, R), from a row and a column."""
    tx, ty, tl = (box + torch.tensor([1.0, 1, 0])) * side / 2

    def inside(at: float, center: Tensor) -> Tensor:
        low, high = (1 / (1 + (-SHARPNESS * (at - end)).exp()) for end in (center - tl, center + tl))
        return low - high

    rows, columns = (torch.stack([inside(i + 0.5, center) for i in range(side)]) for center in (ty, tx))
    return rows[:, None] * columns


def part(image: Tensor, box: Tensor, size: int, mask: bool) -> Tensor:
    return bilinear(image * mask_of(box, image.shape[2]) if mask else image, box, size)


def by_loops(
    discriminator: Discriminator, images: Tensor, labels: Tensor | None, reals: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, S) of detached boxes, ranking loss (), whose gradient is meant for the proposals, boxes (B, S, 4)."""
    size, smallest, margin, weight, mask = OPTIONS[form]
    frontend = discriminator.frontend
    trunks, heads = [discriminator.trunk, *frontend.trunks], [discriminator.head, *frontend.heads]
    logits, ranks, boxes = [], [], []
    for b in range(len(images)):
        image, label = images[b], None if labels is None else labels[b : b + 1]
        box, seen, scales = torch.tensor([0.0, 0, 1]).double(), image, []
        for s, (trunk, head) in enumerate(zip(trunks, heads, strict=True)):
            features = trunk(seen[None])
            scales.append(head(features, label)[0])
            tx, ty, tl = (float(v) for v in box)
            boxes.append([(ty - tl + 1) / 2, (tx - tl + 1) / 2, (ty + tl + 1) / 2, (tx + tl + 1) / 2])
            if s < len(frontend.proposals):
                p = frontend.proposals[s]
                hidden = torch.tanh(p.hidden.weight @ features.detach().relu().flatten() + p.hidden.bias)
                share = torch.sigmoid(p.gamma * (p.out.weight @ hidden) + p.bias)
                half = smallest + (1 - smallest) * share[2]
                inner = torch.stack([(2 * share[0] - 1) * (1 - half), (2 * share[1] - 1) * (1 - half), half])
                proposed = torch.stack([box[0] + box[2] * inner[0], box[1] + box[2] * inner[1], box[2] * inner[2]])
                closer = heads[s + 1](trunks[s + 1](part(image.detach(), proposed, size, mask)[None]), label)[0]
                lack = scales[s].detach() - closer + margin if reals[b] else closer - scales[s].detach() + margin
                ranks.append(lack.clamp(min=0))
                box = proposed.detach()
                seen = part(image, box, size, mask)
        logits.append(torch.stack(scales))
    boxes = torch.tensor(boxes, dtype=torch.float64).view(len(images), -1, 4)
    return torch.stack(logits), weight * sum(ranks) / len(images), boxes


@pytest.mark.parametrize(("form", "classes"), [(ZOOM, 4), (MASKED, 0)], ids=["zoom", "masked"])
def test_equals_the_loop(form: str, classes: int):
    """Boxes, crops, logits, ranking and gradients equal the loop; each parameter learns from its own loss."""
    discriminator = front_end(form, classes).eval()
    images, labels, reals = judged(2, classes)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with record_attention(discriminator) as maps:
            logits, penalties = discriminator(images, labels, reals)
        expected, rank, boxes = by_loops(discriminator, images, labels, reals, form)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(penalties["rank"], rank, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(maps["frontend"].weights[:, :, 0, 0].double(), boxes.double(), rtol=1e-9, atol=1e-9)
        weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        names = ["images", *dict(discriminator.named_parameters())]
        leaves = [images, *discriminator.parameters()]
        loss = (logits * weight).sum() + gradient_penalty(images, logits) + penalties["rank"]
        found = dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))
        judging = (expected * weight).sum() + gradient_penalty(images, expected)
        by_loop = dict(zip(names, torch.autograd.grad(judging, leaves, allow_unused=True), strict=True))
    proposals = [name for name in names if "proposals" in name]
    assert [name for name, gradient in by_loop.items() if gradient is None] == proposals
    own = [discriminator.get_parameter(name) for name in proposals]
    by_loop |= dict(zip(proposals, torch.autograd.grad(rank, own), strict=True))
    for name, gradient in found.items():
        atol = 1e-9 * float(by_loop[name].abs().max().clamp(min=1))
        torch.testing.assert_close(gradient, by_loop[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0, name


def test_it_starts_at_the_center():
    """Halfway between the smallest box and the whole."""
    discriminator = build_discriminator(front_end_config("{name: zoom, scales: 3, smallest: 0.5}"), 0)
    with record_attention(discriminator) as maps, torch.no_grad():
        discriminator(torch.randn(2, 3, 32, 32))
    first, second, third = maps["frontend"].weights[1, :, 0, 0]
    assert first.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(second, torch.tensor([0.125, 0.125, 0.875, 0.875]))
    torch.testing.assert_close(third, 0.125 + 0.75 * second)


def test_without_reals_there_is_no_penalty():
    discriminator = front_end(ZOOM)
    images, labels, reals = judged(4)
    assert discriminator(images, labels).penalties == {}
    turned = discriminator.eval()(images, labels, ~reals).penalties["rank"]
    assert turned != discriminator(images, labels, reals).penalties["rank"]


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_boxes_stay_inside(shares: list[float], smallest: float):
    """Inside the previous one, and not smaller than allowed."""
    first, second = torch.tensor(shares, dtype=torch.float64).view(2, 1, 3)
    outer, inner = box_from_shares(first, smallest), box_from_shares(second, smallest)
    for box, bounds in ((outer, torch.tensor([[0.0, 0, 1, 1]])), (within(outer, inner), edges(outer))):
        assert ((edges(box) - bounds)[:, :2] >= -1e-12).all()
        assert ((bounds - edges(box))[:, 2:] >= -1e-12).all()
    assert outer[0, 2] >= smallest - 1e-12
    assert within(outer, inner)[0, 2] >= smallest**2 - 1e-12


def test_the_whole_image_is_itself():
    """The box of the whole image returns the image; corners and the mask are exact."""
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    whole = torch.tensor([[0.0, 0, 1]]).double().expand(2, 3)
    torch.testing.assert_close(zoom(images, whole, 8), images)
    corner = torch.tensor([[0.5, -0.5, 0.5]]).double().expand(2, 3)  # right, up
    torch.testing.assert_close(zoom(images, corner, 4), images[:, :, :4, 4:])
    grey = torch.full((2, 3, 8, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(zoom(grey, corner, 16), torch.full((2, 3, 16, 16), 0.7, dtype=torch.float64))
    mask = boxcar(corner, 8)[0, 0]
    assert mask[:4, 4:].min() > 0.97
    assert max(mask[5:].max(), mask[:, :3].max()) < 0.01


def test_zoom_is_grid_sample():
    images = torch.randn(3, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.11, -0.23, 0.51], [0.05, 0.33, 0.61], [-0.6, 0.6, 0.4]]).double().requires_grad_()
    tx, ty, tl = boxes.unbind(1)
    theta = torch.stack([tl, 0 * tl, tx, 0 * tl, tl, ty], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [3, 1, 7, 7], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    weight, found = torch.randn_like(expected), zoom(images, boxes, 7)
    gradients = [torch.autograd.grad((values * weight).sum(), [images, boxes]) for values in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_zoom_can_be_differentiated_twice():
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.11, -0.23, 0.51], [0.05, 0.33, 0.61]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: zoom(x * boxcar(b, 6), b, 5), (images, boxes))
    assert torch.autograd.gradgradcheck(lambda x, b: zoom(x, b, 5), (images, boxes))


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_means_over_scales(name: str):
    """R1 too."""
    loss = LOSSES[name]
    real, fake = torch.randn(2, 5, 3, dtype=torch.float64)
    each = [(loss.discriminator(real[:, s], fake[:, s]), loss.generator(fake[:, s], real[:, s])) for s in range(3)]
    assert loss.discriminator(real, fake).item() == pytest.approx(sum(d.item() for d, _ in each) / 3)
    assert loss.generator(fake, real).item() == pytest.approx(sum(g.item() for _, g in each) / 3)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.stack([(images**2).sum((1, 2, 3)), (3 * images).sum((1, 2, 3))], 1)
    torch.testing.assert_close(gradient_penalty(images, logits), gradient_penalty(images, logits.mean(1)))

"""DiffAugment against a slow loop over images and pixels; its draws; flips."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sagan.training.augment import DRAWS, augment, consistency_transform, draw_augmentation, flip

POLICIES = [("color",), ("translation",), ("cutout",), ("cutout", "color"), ("color", "translation", "cutout")]


def slow_color(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    """(3, H, W) by the equations of DiffAugment: brightness, then saturation, then contrast."""
    image = image + (u[0] - 0.5)
    out = np.empty_like(image)
    for row, column in np.ndindex(image.shape[1:]):
        pixel = image[:, row, column]
        out[:, row, column] = pixel.mean() + (pixel - pixel.mean()) * 2 * u[1]
    return out.mean() + (out - out.mean()) * (0.5 + u[2])


def slow_shifts(image: np.ndarray, u: np.ndarray) -> list[int]:
    """Integers, uniform over -⌊side/8 + ½⌋ … ⌊side/8 + ½⌋ on each axis."""
    ranges = [range(-int(side / 8 + 0.5), int(side / 8 + 0.5) + 1) for side in image.shape[1:]]
    return [choices[int(number * len(choices))] for choices, number in zip(ranges, u, strict=True)]


def slow_translation(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Zeros outside."""
    shifts, out = slow_shifts(image, u), np.zeros_like(image)
    for row, column in np.ndindex(image.shape[1:]):
        source = row + shifts[0], column + shifts[1]
        if 0 <= source[0] < image.shape[1] and 0 <= source[1] < image.shape[2]:
            out[:, row, column] = image[:, source[0], source[1]]
    return out


def slow_cutout(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A hole of half the side, its center anywhere, cut off at the border."""
    out, spans = image.copy(), []
    for side, number in zip(image.shape[1:], u, strict=True):
        length = int(side / 2 + 0.5)
        center = int(number * (side + (1 - length % 2)))
        spans.append((center - length // 2, center - length // 2 + length))
    for row, column in np.ndindex(image.shape[1:]):
        if spans[0][0] <= row < spans[0][1] and spans[1][0] <= column < spans[1][1]:
            out[:, row, column] = 0
    return out


SLOW = {"color": slow_color, "translation": slow_translation, "cutout": slow_cutout}


def inputs(policy: tuple[str, ...], count: int = 6, size: tuple[int, int] = (9, 12)) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and their draws, with the smallest and the largest possible draw among them."""
    rng = torch.Generator().manual_seed(0)
    draws = draw_augmentation(policy, count, rng).double()
    draws[0], draws[1] = 0, 1 - 2**-24
    return torch.rand(count, 3, *size, generator=rng, dtype=torch.float64) * 2 - 1, draws


@pytest.mark.parametrize("policy", POLICIES, ids="+".join)
@pytest.mark.parametrize("size", [(9, 12), (32, 32)], ids=str)
def test_against_a_loop(policy: tuple[str, ...], size: tuple[int, int]) -> None:
    images, draws = inputs(policy, size=size)
    expected = images.numpy().copy()
    for image in range(len(expected)):
        left = draws[image].numpy()
        for name in policy:
            expected[image], left = SLOW[name](expected[image], left[: DRAWS[name]]), left[DRAWS[name] :]
    torch.testing.assert_close(augment(images, policy, draws), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_consistency_transform_against_a_loop() -> None:
    images, draws = inputs(("color",), count=8)  # three numbers each
    moved = consistency_transform(images, draws).numpy()
    height, width = images.shape[2:]
    for image, u, found in zip(images.numpy(), draws.numpy(), moved, strict=True):
        image = image[:, :, ::-1] if u[0] < 0.5 else image
        wide = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        rows, columns = (4 + shift for shift in slow_shifts(image, u[1:]))
        np.testing.assert_array_equal(found, wide[:, rows : rows + height, columns : columns + width])


@pytest.mark.parametrize("policy", POLICIES, ids="+".join)
def test_differentiable(policy: tuple[str, ...]) -> None:
    images, draws = inputs(policy, count=3, size=(4, 6))
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, policy, draws), [images])
    (gradient,) = torch.autograd.grad(augment(images, policy, draws).sum(), images)
    assert gradient.abs().sum() > 0


def test_empty_policy_is_the_identity() -> None:
    images, draws = inputs(())
    assert draws.shape == (6, 0)
    assert augment(images, (), draws) is images


def test_draws_follow_from_the_seed() -> None:
    first, again, other = (
        draw_augmentation(("color", "cutout"), 5, torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    )
    torch.manual_seed(0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (5, 5)
    assert len(first.unique()) == 25
    assert ((first >= 0) & (first < 1)).all()


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_every_shift_and_center_is_reached(resolution: int) -> None:
    reach = resolution // 8
    image = torch.zeros(1, 3, resolution, resolution)
    image[:, :, resolution // 2] = 1
    shifts = set()
    for draw in torch.linspace(0, 1 - 2**-24, 4 * (2 * reach + 1)):
        moved = augment(image, ("translation",), torch.tensor([[float(draw), 0.5]]))
        shifts.add(resolution // 2 - int(moved[0, 0, :, resolution // 2].argmax()))
    assert shifts == set(range(-reach, reach + 1))


def test_flip_mirrors_the_chosen_images_alone() -> None:
    images, _ = inputs(())
    which = torch.tensor([True, False, False, True, True, False])
    flipped = flip(images, which)
    for image, mirrored, chosen in zip(images.numpy(), flipped.numpy(), which, strict=True):
        np.testing.assert_array_equal(mirrored, image[:, :, ::-1] if chosen else image)

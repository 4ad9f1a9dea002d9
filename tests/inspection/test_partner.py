import numpy as np
import pytest
import torch

from sagan.attention import AttentionMap
from sagan.data.shapes import object_masks, placement, render_many
from sagan.evaluation.coherence import clear_pairs
from sagan.evaluation.segmentation import find_objects
from sagan.inspection.maps import Recording
from sagan.inspection.partner import object_mask, partner_mass
from sagan.inspection.points import pixel_points

COUNT = 16
MASKS = np.stack([object_masks(placement(i), 32) for i in range(COUNT)])


def recording_on(points: torch.Tensor, weights: torch.Tensor, kind: str = "softmax row") -> Recording:
    images, labels = render_many(COUNT, 32)
    maps = {"attention.16x16": AttentionMap(kind, weights)}
    return Recording(images, np.arange(COUNT), labels, points, maps, {}, {"attention.16x16": (16, 16)})


def on_objects() -> torch.Tensor:
    """Points (COUNT, 3, 2): in each image one on the left object, one on the right one, one on the background."""

    def inside(mask: np.ndarray) -> list[int]:
        pixels = np.argwhere(mask)
        return pixels[len(pixels) // 2].tolist()

    return pixel_points(torch.tensor([[inside(m[0]), inside(m[1]), inside(~m.any(0))] for m in MASKS]), 32, 32)


def test_attention_on_the_partner_alone_and_on_the_own_object_alone() -> None:
    """Breaks when own and partner are exchanged, points on the background count, or maps belong to other points."""
    cells = torch.from_numpy(MASKS.reshape(COUNT, 2, 8, 4, 8, 4).mean((3, 5)) == 1)  # keys wholly on an object
    whole = cells.flatten(2).double()
    usable = (whole.sum(2) > 0).all(1)
    rows = (whole / whole.sum(2, keepdim=True).clamp(min=1)).unflatten(2, (8, 8))  # left, right
    junk = torch.rand(COUNT, 8, 8).double()
    for order, expected in (((1, 0), 1.0), ((0, 1), 0.0)):
        weights = torch.stack([rows[:, order[0]], rows[:, order[1]], junk], dim=1)[:, None]  # (B, 1, 3, 8, 8)
        measured = partner_mass(recording_on(on_objects(), weights), MASKS * usable.numpy()[:, None, None, None])
        found = measured["attention.16x16"]
        assert found.mass == pytest.approx(expected)
        assert found.own == pytest.approx(1 - expected)
        assert found.points == 2 * usable.sum() >= 16


def test_uniform_attention_is_at_chance_which_is_the_partners_area() -> None:
    """Breaks when chance is not what uniform attention gives, or keys are not spread over their pixels."""
    weights = torch.full((COUNT, 2, 3, 8, 8), 1 / 64)
    found = partner_mass(recording_on(on_objects(), weights), MASKS)["attention.16x16"]
    assert found.mass == pytest.approx(found.chance)
    assert found.chance == pytest.approx(MASKS.mean())
    assert found.points == 2 * COUNT


def test_the_same_map_for_every_point_is_above_chance_but_not_above_the_own_object() -> None:
    """Breaks when `own` is no control: all attention on the left object passes for attention to the partner."""
    left = torch.from_numpy(MASKS[:, 0].reshape(COUNT, 8, 4, 8, 4).mean((2, 4)))
    weights = (left / left.sum((1, 2), keepdim=True))[:, None, None].expand(-1, 1, 3, -1, -1)
    found = partner_mass(recording_on(on_objects(), weights), MASKS)["attention.16x16"]
    assert found.mass > 3 * found.chance
    assert found.mass == pytest.approx(found.own)


def test_nothing_on_an_object_measures_nothing() -> None:
    """Breaks when no object or no softmax gives nan instead of no result."""
    weights = torch.full((COUNT, 1, 3, 8, 8), 1 / 64)
    assert partner_mass(recording_on(on_objects(), weights), np.zeros_like(MASKS)) == {}
    assert partner_mass(recording_on(on_objects(), weights, kind="gate"), MASKS) == {}


@pytest.mark.parametrize("resolution", [32, 64])
def test_masks_from_segmentation_cover_the_rendered_objects(resolution: int) -> None:
    """Breaks when a mask has another shape, place or size than the object that was found."""
    images, _ = render_many(40, resolution)
    which, found = clear_pairs(find_objects(images))
    assert len(which) == 40
    drawn = np.stack([object_masks(placement(i), resolution) for i in range(40)]).reshape(80, resolution, resolution)
    masks = np.stack([object_mask(*row, resolution) for row in zip(found.shape, found.centre, found.area, strict=True)])
    overlap = (masks & drawn).sum((1, 2)) / (masks | drawn).sum((1, 2))
    assert overlap.mean() > 0.9

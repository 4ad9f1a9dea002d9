"""Statistics of attention maps, and attention to the other object of `shapes`."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sagan.attention import AttentionMap, record_attention
from sagan.config.load import load_config
from sagan.data.shapes import ONE_PAIR, TWO_PAIRS, Variant, object_masks, placement, render_many
from sagan.evaluation.coherence import clear_objects, find_objects
from sagan.inspection.health import attention_health, describe, map_health, masks_of, partner_mass, variation
from sagan.inspection.record import Recording, grid_points, module_gammas, pixel_points
from sagan.models.generator import build_discriminator, build_generator


def rows_map(weights: Tensor) -> AttentionMap:
    return AttentionMap("softmax row", weights)


def explicit_health(weights: Tensor, points: Tensor, size: tuple[int, int]) -> dict[str, float]:
    """Loops over everything; the local share is counted cell by cell."""
    *each, height, width = weights.shape
    strides = size[0] // height, size[1] // width
    values = []
    for b, head, j in np.ndindex(*each):
        row, column = (math.floor(points[b, j, axis].item() * size[axis]) for axis in (0, 1))
        h = d = f = 0.0
        for y, x in np.ndindex(height, width):
            p = weights[b, head, j, y, x].item()
            h -= p * math.log(p) if p > 0 else 0
            covered = [(y * strides[0] + i, x * strides[1] + n) for i, n in np.ndindex(*strides)]
            center = [sum(c[axis] + 0.5 for c in covered) / len(covered) / size[axis] for axis in (0, 1)]
            d += p * math.dist(center, ((row + 0.5) / size[0], (column + 0.5) / size[1]))
            local = sum(abs(r - row) <= 3 and abs(c - column) <= 3 for r, c in covered)
            f += p * (1 - local / len(covered))
        values.append((h / math.log(height * width), d, f))
    return dict(zip(("entropy", "distance", "far_mass"), np.mean(values, axis=0).tolist(), strict=True))


def random_map(keys: tuple[int, int]) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    weights = (2 * torch.randn(2, 3, 4, keys[0] * keys[1], generator=rng)).softmax(-1).unflatten(3, keys)
    return weights, torch.rand(2, 4, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "keys"), [((8, 8), (8, 8)), ((16, 16), (8, 8)), ((9, 13), (4, 6)), ((5, 12), (5, 12))]
)
def test_health_equals_loops_over_every_cell(size: tuple[int, int], keys: tuple[int, int]) -> None:
    weights, points = random_map(keys)
    health = map_health(rows_map(weights), points, size)
    uniform = map_health(rows_map(torch.full_like(weights, 1 / keys[0] / keys[1])), points, size)
    for name, expected in explicit_health(weights, points, size).items():
        assert health[name] == pytest.approx(expected, abs=1e-6)
        assert health[f"uniform_{name}"] == pytest.approx(uniform[name], abs=1e-6)
    shared = map_health(rows_map(weights), points[0], size)  # (k, 2) points count for every image
    assert shared == pytest.approx(map_health(rows_map(weights), points[:1].expand(2, -1, -1), size))


def test_variation_is_the_mean_distance_between_the_rows_of_two_points() -> None:
    weights, _ = random_map((4, 6))
    rows = weights.flatten(3)
    expected = [
        sum((rows[b, h, i] - rows[b, h, j]).abs().sum() / 2 for i in range(4) for j in range(i)) / 6
        for b, h in np.ndindex(2, 3)
    ]
    assert variation(weights).flatten().tolist() == pytest.approx([float(value) for value in expected])
    assert variation(weights[:, :, :1].expand(-1, -1, 4, -1, -1)).abs().max() < 1e-12
    assert variation(torch.eye(6).reshape(1, 1, 6, 2, 3)).item() == 1
    assert "variation" not in map_health(rows_map(weights[:, :, :1]), grid_points(1), (8, 12))


def test_health_and_gammas_of_networks() -> None:
    config = load_config(None, ["generator.channels=4", "generator.attention={8: self_attention, 16: self_attention}",
                                "discriminator.channels=4"])  # fmt: skip
    generator, discriminator = build_generator(config, 0), build_discriminator(config, 0)
    generator.attention["16x16"].gamma.data.fill_(-0.25)  # type: ignore[union-attr]
    assert module_gammas(generator) == {"attention.8x8": 0, "attention.16x16": -0.25}
    assert module_gammas(discriminator) == {"trunk.attention.16x16": 0}
    points = grid_points(5)
    with record_attention(generator.eval(), points) as maps, torch.no_grad():
        generator(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)))
    health = attention_health(generator, maps, points)
    assert list(health) == ["attention.8x8", "attention.16x16"]
    assert health["attention.16x16"]["gamma"] == -0.25
    for name, size in (("attention.8x8", 8), ("attention.16x16", 16)):
        expected = explicit_health(maps[name].weights, points.expand(2, -1, -1), (size, size))
        assert {key: health[name][key] for key in expected} == pytest.approx(expected, abs=1e-5)
    signed = {"attention.16x16": AttentionMap("signed weight", torch.randn(1, 1, 2, 8, 8))}
    assert attention_health(generator, signed, grid_points(2)) == {"attention.16x16": {"gamma": -0.25}}


@pytest.mark.parametrize(("changes", "expected"), [
    ({"gamma": 0.41}, "is used: gamma 0.41, 63 % of the mass is far (uniform: 80 %)"),
    ({"gamma": -0.41}, "is used: gamma -0.41, 63 % of the mass is far (uniform: 80 %)"),
    ({"gamma": 0.0}, "is unused: gamma is still 0"),
    ({"gamma": 0.004, "entropy": 0.999}, "is weak: gamma 0.004, 63 % of the mass is far (uniform: 80 %), "
                                         "nearly uniform maps"),
    ({"variation": 0.01}, "is active: 63 % of the mass is far (uniform: 80 %), nearly the same map for every point"),
])  # fmt: skip
def test_a_sentence_describes_a_map(changes: dict[str, float], expected: str) -> None:
    numbers = {"entropy": 0.6, "variation": 0.5, "far_mass": 0.634, "uniform_far_mass": 0.8}
    assert describe("attention.16x16", {**numbers, **changes}) == f"attention at 16x16 {expected}"


COUNT = 16
MASKS = np.stack([object_masks(placement(i), 32) for i in range(COUNT)])


def partner_of(weights: Tensor, masks: np.ndarray = MASKS, kind: str = "softmax row") -> dict[str, float]:
    """Attention of three points per image: on the left object, on the right one, on the background."""

    def inside(mask: np.ndarray) -> list[int]:
        pixels = np.argwhere(mask)
        return pixels[len(pixels) // 2].tolist()

    pixels = [[inside(m[0]), inside(m[1]), inside(~m.any(0))] for m in MASKS]
    images, labels = render_many(COUNT, 32)
    recording = Recording(
        images, np.arange(COUNT), labels, pixel_points(torch.tensor(pixels), 32, 32),
        {"attention.16x16": AttentionMap(kind, weights)}, {}, {"attention.16x16": (16, 16)},
    )  # fmt: skip
    return partner_mass(recording, masks, ONE_PAIR).get("attention.16x16", {})


def test_own_object_and_partner_are_distinguished() -> None:
    cells = torch.from_numpy(MASKS.reshape(COUNT, 2, 8, 4, 8, 4).mean((3, 5)) == 1)  # keys wholly on an object
    whole = cells.flatten(2).double()
    usable = (whole.sum(2) > 0).all(1)
    rows = (whole / whole.sum(2, keepdim=True).clamp(min=1)).unflatten(2, (8, 8))  # left, right
    background = torch.rand(COUNT, 8, 8).double()  # does not count
    for order, expected in (((1, 0), 1.0), ((0, 1), 0.0)):
        weights = torch.stack([rows[:, order[0]], rows[:, order[1]], background], dim=1)[:, None]  # (B, 1, 3, 8, 8)
        found = partner_of(weights, MASKS * usable.numpy()[:, None, None, None])
        assert found["mass"] == pytest.approx(expected)
        assert found["own"] == pytest.approx(1 - expected)
        assert found["points"] == 2 * usable.sum() >= 16


def test_uniform_attention_is_at_chance_which_is_the_partners_area() -> None:
    found = partner_of(torch.full((COUNT, 2, 3, 8, 8), 1 / 64))
    assert found["mass"] == pytest.approx(found["chance"]) == pytest.approx(MASKS.mean())
    assert found["ratio_to_chance"] == pytest.approx(1)
    assert found["points"] == 2 * COUNT


def test_the_same_map_for_every_point_is_above_chance_but_not_above_the_own_object() -> None:
    left = torch.from_numpy(MASKS[:, 0].reshape(COUNT, 8, 4, 8, 4).mean((2, 4)))
    found = partner_of((left / left.sum((1, 2), keepdim=True))[:, None, None].expand(-1, 1, 3, -1, -1))
    assert found["mass"] > 3 * found["chance"]
    assert found["mass"] == pytest.approx(found["own"])


def test_without_objects_or_softmax_rows_there_is_no_result() -> None:
    weights = torch.full((COUNT, 1, 3, 8, 8), 1 / 64)
    assert partner_of(weights, np.zeros_like(MASKS)) == partner_of(weights, kind="spatial gate") == {}


@pytest.mark.parametrize("variant", [ONE_PAIR, TWO_PAIRS])
@pytest.mark.parametrize("resolution", [32, 64])
def test_masks_from_segmentation_cover_the_rendered_objects(resolution: int, variant: Variant) -> None:
    images, _ = render_many(40, resolution, variant=variant)
    which, found = clear_objects(find_objects(images), variant)
    assert len(which) == 40
    drawn = np.stack([object_masks(placement(i, variant=variant), resolution) for i in range(40)])
    masks = masks_of(found, variant, resolution)
    overlap = (masks & drawn).sum((2, 3)) / (masks | drawn).sum((2, 3))
    assert overlap.mean() > 0.9


def test_with_two_pairs_the_partner_is_on_the_diagonal() -> None:
    masks = np.stack([object_masks(placement(i, variant=TWO_PAIRS), 32) for i in range(COUNT)])  # (B, 4, 32, 32)
    points = pixel_points(
        torch.from_numpy(np.array([[np.argwhere(m)[m.sum() // 2] for m in row] for row in masks])), 32, 32
    )
    cells = torch.from_numpy(masks).double()
    whole = cells / cells.sum((2, 3), keepdim=True)  # the rows of attention to each object
    rows = 0.5 * whole[:, [3, 2, 1, 0]] + 0.3 * whole + 0.2 * whole[:, [1, 0, 3, 2]]  # partner, own, a neighbor
    recording = Recording(
        render_many(COUNT, 32, variant=TWO_PAIRS)[0], np.arange(COUNT), np.zeros(COUNT, int), points,
        {"a": AttentionMap("softmax row", rows[:, None])}, {}, {"a": (32, 32)},
    )  # fmt: skip
    found = partner_mass(recording, masks, TWO_PAIRS)["a"]
    assert found["points"] == 4 * COUNT
    assert [found[name] for name in ("mass", "own", "others")] == pytest.approx([0.5, 0.3, 0.2])
    assert found["chance"] == pytest.approx(masks.mean())
    assert found["chance_others"] == pytest.approx(2 * masks.mean())

"""Numbers of attention maps, and attention to the other object of `shapes`."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sagan.attention import AttentionMap, record_attention
from sagan.config.load import load_config
from sagan.data.shapes import object_masks, placement, render_many
from sagan.evaluation.coherence import clear_pairs, find_objects
from sagan.inspection.health import (
    attention_health,
    describe,
    entropy,
    map_health,
    object_mask,
    partner_mass,
    variation,
)
from sagan.inspection.record import Recording, grid_points, module_gammas, pixel_points
from sagan.models.generator import Generator, build_discriminator, build_generator


def explicit_health(weights: Tensor, points: Tensor, size: tuple[int, int]) -> tuple[float, float, float]:
    """entropy, distance, far_mass with loops over everything; the local share counted cell by cell."""
    images, heads, k, height, width = weights.shape
    strides = size[0] // height, size[1] // width
    entropies, distances, far = [], [], []
    for b in range(images):
        for head in range(heads):
            for j in range(k):
                row, column = (math.floor(points[b, j, axis].item() * size[axis]) for axis in (0, 1))
                h = d = f = 0.0
                for y in range(height):
                    for x in range(width):
                        p = weights[b, head, j, y, x].item()
                        h -= p * math.log(p) if p > 0 else 0
                        covered = [
                            (y * strides[0] + i, x * strides[1] + n)
                            for i in range(strides[0])
                            for n in range(strides[1])
                        ]
                        center = [sum(c[axis] + 0.5 for c in covered) / len(covered) / size[axis] for axis in (0, 1)]
                        d += p * math.dist(center, ((row + 0.5) / size[0], (column + 0.5) / size[1]))
                        local = sum(abs(r - row) <= 3 and abs(c - column) <= 3 for r, c in covered)
                        f += p * (1 - local / len(covered))
                entropies.append(h / math.log(height * width))
                distances.append(d)
                far.append(f)
    return tuple(sum(values) / len(values) for values in (entropies, distances, far))  # type: ignore[return-value]


def random_map(size: tuple[int, int], keys: tuple[int, int], sharpness: float = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    weights = (sharpness * torch.randn(2, 3, 4, keys[0] * keys[1], generator=rng)).softmax(-1).unflatten(3, keys)
    return weights, torch.rand(2, 4, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "keys"), [((8, 8), (8, 8)), ((16, 16), (8, 8)), ((9, 13), (4, 6)), ((5, 12), (5, 12))]
)
def test_health_is_what_loops_over_every_cell_give(size: tuple[int, int], keys: tuple[int, int]) -> None:
    """Compared with explicit loops over every key and cell."""
    weights, points = random_map(size, keys)
    health = map_health(AttentionMap("softmax row", weights), points, size)
    uniform = map_health(AttentionMap("softmax row", torch.full_like(weights, 1 / keys[0] / keys[1])), points, size)
    for name, expected in zip(("entropy", "distance", "far_mass"), explicit_health(weights, points, size), strict=True):
        assert health[name] == pytest.approx(expected, abs=1e-6)
        assert health[f"uniform_{name}"] == pytest.approx(uniform[name], abs=1e-6)


def test_points_shared_by_all_images_count_as_given_for_each() -> None:
    """(k, 2) points count for every image."""
    weights, points = random_map((16, 16), (8, 8))
    found = AttentionMap("softmax row", weights)
    assert map_health(found, points[0], (16, 16)) == map_health(found, points[:1].expand(2, -1, -1), (16, 16))


def test_all_mass_on_the_own_cell_and_in_the_far_corner() -> None:
    """Distances are in map sides; the local neighborhood is 7×7."""
    weights = torch.zeros(1, 1, 3, 10, 10)
    weights[0, 0, 0, 0, 0] = weights[0, 0, 1, 0, 9] = weights[0, 0, 2, 3, 3] = 1
    point = pixel_points(torch.tensor([[0, 0]]), 10, 10)
    each = [map_health(AttentionMap("softmax row", weights[:, :, j : j + 1]), point, (10, 10)) for j in range(3)]
    assert [h["distance"] for h in each] == pytest.approx([0, 0.9, 0.3 * math.sqrt(2)])
    assert [h["far_mass"] for h in each] == [0, 1, 0]
    assert [h["entropy"] for h in each] == [0, 0, 0]
    assert each[0]["uniform_far_mass"] == pytest.approx(1 - 16 / 100)


def test_entropy_of_a_row_with_zeros_is_finite() -> None:
    """0 log 0 is 0."""
    row = torch.zeros(4, 4)
    row[0, :2] = 0.5
    assert entropy(row).item() == pytest.approx(math.log(2) / math.log(16))


def test_variation_is_the_mean_distance_between_the_rows_of_two_points() -> None:
    """Pairs are points of the same image and head, without a point and itself."""
    weights, _ = random_map((8, 8), (4, 6))
    rows = weights.flatten(3)
    expected = [
        sum((rows[b, h, i] - rows[b, h, j]).abs().sum() / 2 for i in range(4) for j in range(i)) / 6
        for b in range(2)
        for h in range(3)
    ]
    assert variation(weights).flatten().tolist() == pytest.approx([float(value) for value in expected])
    assert variation(weights[:, :, :1].expand(-1, -1, 4, -1, -1)).abs().max() < 1e-12
    assert variation(torch.eye(6).reshape(1, 1, 6, 2, 3)).item() == 1
    alone = map_health(AttentionMap("softmax row", weights[:, :, :1]), grid_points(1), (8, 12))
    assert "variation" not in alone
    assert "same" not in describe({"attention.8x8": {"gamma": 1.0, **alone}})


def test_health_and_gammas_of_networks() -> None:
    """Every module has its own gamma and the size of its query map."""
    config = load_config(None, ["generator.channels=8", "generator.attention={8: self_attention, 16: self_attention}",
                                "discriminator.channels=8"])  # fmt: skip
    generator, discriminator = build_generator(config, 0), build_discriminator(config, 0)
    set_gamma(generator, "16x16", -0.25)
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
        assert [health[name][key] for key in ("entropy", "distance", "far_mass")] == pytest.approx(expected, abs=1e-5)


def test_a_map_that_is_no_softmax_has_only_its_gamma() -> None:
    """Signed weights have no entropy."""
    config = load_config(None, ["generator.channels=8"])
    maps = {"attention.16x16": AttentionMap("signed weight", torch.randn(1, 1, 2, 8, 8))}
    assert attention_health(build_generator(config, 0), maps, grid_points(2)) == {"attention.16x16": {"gamma": 0.0}}


def test_a_health_is_said_in_plain_words() -> None:
    """Used, weak and unused attention read differently."""
    numbers = {"entropy": 0.6, "variation": 0.5, "far_mass": 0.634, "uniform_far_mass": 0.8}
    assert describe({"attention.16x16": {"gamma": 0.41, **numbers}}) == (
        "attention at 16x16 is used: gamma 0.41, 63 % of the mass is far (uniform: 80 %)"
    )
    assert describe({"attention.16x16": {"gamma": -0.41, **numbers}}).startswith(
        "attention at 16x16 is used: gamma -0.41"
    )
    assert describe({"attention.8x8": {"gamma": 0.0, **numbers}}) == "attention at 8x8 is unused: gamma is still 0"
    weak = describe({"attention.8x8": {"gamma": 0.004, **numbers, "entropy": 0.999}})
    assert weak.startswith("attention at 8x8 is weak: gamma 0.004")
    assert weak.endswith("nearly uniform maps")
    same = describe({"attention.8x8": {"gamma": 0.4, **numbers, "variation": 0.01}})
    assert same.endswith("80 %), nearly the same map for every point")
    assert describe({"attention.8x8": {"gamma": 0.0}, "blocks.2.branch": {"gamma": 1.0}}).splitlines()[1] == (
        "attention at blocks.2.branch is used: gamma 1"
    )


def set_gamma(network: Generator, place: str, gamma: float) -> None:
    with torch.no_grad():
        network.attention[place].gamma.fill_(gamma)  # type: ignore[union-attr]


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
    """Own object and partner are told apart; points on the background do not count."""
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
    """Chance is what uniform attention gives: the partner's share of the area."""
    weights = torch.full((COUNT, 2, 3, 8, 8), 1 / 64)
    found = partner_mass(recording_on(on_objects(), weights), MASKS)["attention.16x16"]
    assert found.mass == pytest.approx(found.chance)
    assert found.chance == pytest.approx(MASKS.mean())
    assert found.points == 2 * COUNT


def test_the_same_map_for_every_point_is_above_chance_but_not_above_the_own_object() -> None:
    """`own` is a control: attention on the left object alone is no attention to the partner."""
    left = torch.from_numpy(MASKS[:, 0].reshape(COUNT, 8, 4, 8, 4).mean((2, 4)))
    weights = (left / left.sum((1, 2), keepdim=True))[:, None, None].expand(-1, 1, 3, -1, -1)
    found = partner_mass(recording_on(on_objects(), weights), MASKS)["attention.16x16"]
    assert found.mass > 3 * found.chance
    assert found.mass == pytest.approx(found.own)


def test_nothing_on_an_object_measures_nothing() -> None:
    """No object, or no softmax rows, gives no result rather than nan."""
    weights = torch.full((COUNT, 1, 3, 8, 8), 1 / 64)
    assert partner_mass(recording_on(on_objects(), weights), np.zeros_like(MASKS)) == {}
    assert partner_mass(recording_on(on_objects(), weights, kind="gate"), MASKS) == {}


@pytest.mark.parametrize("resolution", [32, 64])
def test_masks_from_segmentation_cover_the_rendered_objects(resolution: int) -> None:
    """A mask has the shape, place and size of the object that was found."""
    images, _ = render_many(40, resolution)
    which, found = clear_pairs(find_objects(images))
    assert len(which) == 40
    drawn = np.stack([object_masks(placement(i), resolution) for i in range(40)]).reshape(80, resolution, resolution)
    masks = np.stack([object_mask(*row, resolution) for row in zip(found.shape, found.center, found.area, strict=True)])
    overlap = (masks & drawn).sum((1, 2)) / (masks | drawn).sum((1, 2))
    assert overlap.mean() > 0.9

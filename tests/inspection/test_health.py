import math

import pytest
import torch
from torch import Tensor

from sagan.attention import AttentionMap, record_attention
from sagan.config import load_config
from sagan.inspection.health import attention_health, describe, entropy, map_health, module_gammas, variation
from sagan.inspection.points import grid_points, pixel_points
from sagan.networks import Generator, build_discriminator, build_generator


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
                        centre = [sum(c[axis] + 0.5 for c in covered) / len(covered) / size[axis] for axis in (0, 1)]
                        d += p * math.dist(centre, ((row + 0.5) / size[0], (column + 0.5) / size[1]))
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
    """Breaks when keys and points are placed wrongly, pooled keys are not spread, or axes are exchanged."""
    weights, points = random_map(size, keys)
    health = map_health(AttentionMap("softmax row", weights), points, size)
    uniform = map_health(AttentionMap("softmax row", torch.full_like(weights, 1 / keys[0] / keys[1])), points, size)
    for name, expected in zip(("entropy", "distance", "far_mass"), explicit_health(weights, points, size), strict=True):
        assert health[name] == pytest.approx(expected, abs=1e-6)
        assert health[f"uniform_{name}"] == pytest.approx(uniform[name], abs=1e-6)


def test_points_shared_by_all_images_count_as_given_for_each() -> None:
    """Breaks when (k, 2) points are not broadcast over the batch."""
    weights, points = random_map((16, 16), (8, 8))
    found = AttentionMap("softmax row", weights)
    assert map_health(found, points[0], (16, 16)) == map_health(found, points[:1].expand(2, -1, -1), (16, 16))


def test_all_mass_on_the_own_cell_and_in_the_far_corner() -> None:
    """Breaks when a distance is not in map sides or the neighbourhood is not 7×7."""
    weights = torch.zeros(1, 1, 3, 10, 10)
    weights[0, 0, 0, 0, 0] = weights[0, 0, 1, 0, 9] = weights[0, 0, 2, 3, 3] = 1
    point = pixel_points(torch.tensor([[0, 0]]), 10, 10)
    each = [map_health(AttentionMap("softmax row", weights[:, :, j : j + 1]), point, (10, 10)) for j in range(3)]
    assert [h["distance"] for h in each] == pytest.approx([0, 0.9, 0.3 * math.sqrt(2)])
    assert [h["far_mass"] for h in each] == [0, 1, 0]
    assert [h["entropy"] for h in each] == [0, 0, 0]
    assert each[0]["uniform_far_mass"] == pytest.approx(1 - 16 / 100)


def test_entropy_of_a_row_with_zeros_is_finite() -> None:
    """Breaks when 0 log 0 gives nan."""
    row = torch.zeros(4, 4)
    row[0, :2] = 0.5
    assert entropy(row).item() == pytest.approx(math.log(2) / math.log(16))


def test_variation_is_the_mean_distance_between_the_rows_of_two_points() -> None:
    """Breaks when points of different images or heads are compared, or a point with itself counts."""
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
    """Breaks when a module is left out, gamma is another module's, or the query map has the wrong size."""
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
    """Breaks when entropy is taken of signed weights."""
    config = load_config(None, ["generator.channels=8"])
    maps = {"attention.16x16": AttentionMap("signed weight", torch.randn(1, 1, 2, 8, 8))}
    assert attention_health(build_generator(config, 0), maps, grid_points(2)) == {"attention.16x16": {"gamma": 0.0}}


def test_a_health_is_said_in_plain_words() -> None:
    """Breaks when used, weak and unused attention read alike."""
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

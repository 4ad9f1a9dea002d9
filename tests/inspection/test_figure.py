"""The attention figure: positions, colors and text, for every kind of map."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sagan.attention import KINDS, AttentionMap
from sagan.config.load import load_config
from sagan.inspection.figure import COLORS, MAX_COLUMNS, SIGNS, Layout, attention_figure, blocks_of, enlarged, opacity
from sagan.inspection.record import Recording, discriminator_attention, grid_points, pixel_points
from sagan.models.generator import build_discriminator

RESOLUTION, SIDE, NAME = 32, 128, "attention"
GRAY = np.full((SIDE, SIDE, 3), 128, np.float32)


def recording_of(
    weights: torch.Tensor, pixels: list[list[int]] | None = None, kind: str = "softmax row", size: int = 16
) -> Recording:
    """Gray images with one map (B, heads, k, H', W')."""
    count = len(weights)
    points = grid_points(3) if pixels is None else pixel_points(torch.tensor(pixels), RESOLUTION, RESOLUTION)
    return Recording(
        images=np.full((count, RESOLUTION, RESOLUTION, 3), 128, np.uint8),
        seeds=np.arange(count),
        labels=np.arange(count) - 1,
        points=points.expand(count, -1, -1),
        maps={NAME: AttentionMap(kind, weights)},
        gamma={NAME: 0.5},
        resolution={NAME: (size, size)},
        class_names=("disc", "a class with a long name"),
    )


def peaks(cells: list[tuple[int, int]], keys: tuple[int, int] = (8, 8)) -> torch.Tensor:
    """One image, one head: all weight on one cell for each point."""
    weights = torch.zeros(1, 1, len(cells), *keys)
    for j, cell in enumerate(cells):
        weights[(0, 0, j, *cell)] = 1
    return weights


def tile(figure: np.ndarray, layout: Layout, block: int, image: int, column: int) -> np.ndarray:
    y, x = layout.tile(block, image, column)
    return figure[y : y + layout.side, x : x + layout.side]


def tile_of(kind: str, weights: torch.Tensor, column: int = 0) -> np.ndarray:
    """The pixels (side, side, 3) of a tile, without dots and text."""
    (block,) = blocks_of(recording_of(weights, kind=kind, size=8))
    return block.tile(0, column, GRAY)


@pytest.mark.parametrize(("resolution", "side"), [(32, 128), (64, 128), (128, 128), (256, 256), (96, 192), (21, 147)])
def test_tiles_are_multiples_of_the_image(resolution: int, side: int) -> None:
    assert Layout(1, 1, resolution).side == side


def test_dots_have_the_colors_of_the_points_at_their_pixels() -> None:
    pixels = [[3, 20], [16, 5], [28, 10]]
    figure, layout = attention_figure(recording_of(peaks([(0, 0)] * 3), pixels)), Layout(1, 3, RESOLUTION)
    image = tile(figure, layout, 0, 0, 0)
    for j, (row, column) in enumerate(pixels):
        assert tuple(image[row * 4 + 2, column * 4 + 2]) == COLORS[j]
        overlay = tile(figure, layout, 0, 0, j + 1)
        assert tuple(overlay[row * 4 + 2, column * 4 + 2]) == COLORS[j]
    assert (image[60:70, 60:100] == 128).all()  # the image is unchanged elsewhere


def test_the_peak_colors_exactly_the_pixels_of_its_cell() -> None:
    cells = [(1, 6), (7, 0), (4, 4)]
    figure, layout = attention_figure(recording_of(peaks(cells), [[30, 30]] * 3)), Layout(1, 3, RESOLUTION)
    for j, (row, column) in enumerate(cells):
        overlay = tile(figure, layout, 0, 0, j + 1).astype(int)
        colored = np.abs(overlay - overlay.mean(2, keepdims=True)).max(2) > 20
        expected = np.zeros((SIDE, SIDE), bool)
        expected[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = True
        seen = np.s_[:100]  # above the dot and the text in the corner
        assert (colored[seen] == expected[seen]).all()
        if row < 6:
            assert overlay[row * 16 + 8, column * 16 + 8].argmax() == np.argmax(COLORS[j])


def test_uniform_attention_is_flat_and_its_noise_stays_faint() -> None:
    uniform = np.full((8, 8), 1 / 64)
    assert np.allclose(opacity(uniform, (16, 16), SIDE), 0.25)
    noisy = uniform * np.random.default_rng(0).uniform(0.9, 1.1, (8, 8))
    assert np.ptp(opacity(noisy, (16, 16), SIDE)) < 0.06
    sharp = np.zeros((8, 8))
    sharp[2, 3] = 0.7
    assert opacity(sharp, (16, 16), SIDE).max() == 1


def test_pooled_keys_of_odd_maps_cover_the_cells_they_were_pooled_from() -> None:
    """3 keys of a 7-cell map cover 6 cells; the last row and column stay empty."""
    shown = opacity(np.eye(3), (7, 7), 70)
    for key in range(3):
        inside = np.s_[key * 20 : key * 20 + 20]
        assert (shown[inside, inside] == 1).all()
    assert np.count_nonzero(shown) == 3 * 20 * 20


def test_rectangular_maps_are_stretched_to_the_image() -> None:
    shown = opacity(peaks([(1, 6)], keys=(2, 8))[0, 0, 0].numpy(), (4, 16), SIDE)
    assert (shown[64:, 96:112] == 1).all()
    assert np.count_nonzero(shown) == 64 * 16


def test_smooth_interpolates_and_keeps_the_peak_in_its_cell() -> None:
    shown = opacity(peaks([(2, 5)])[0, 0, 0].numpy(), (16, 16), SIDE, smooth=True)
    assert len(np.unique(shown)) > 50
    assert shown.min() >= 0
    assert shown.max() <= 1
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y // 16, x // 16) == (2, 5)


def test_every_image_head_and_module_has_its_own_tiles() -> None:
    weights = torch.cat([peaks([(0, 0), (1, 1)]), peaks([(2, 2), (3, 3)])])  # (2, 1, 2, 8, 8)
    weights = torch.cat([weights, weights.flip(3)], dim=1)
    record = recording_of(weights, [[31, 31], [31, 30]])
    record = replace(
        record,
        maps={**record.maps, "other": AttentionMap("softmax row", weights.flip(4))},
        resolution={NAME: (16, 16), "other": (8, 8)},
    )
    figure, layout = attention_figure(record), Layout(2, 2, RESOLUTION)
    assert figure.shape == (*layout.size(4), 3)
    for block, shown in enumerate([weights[:, 0], weights[:, 1], weights[:, 0].flip(3), weights[:, 1].flip(3)]):
        for image, j in np.ndindex(2, 2):
            row, column = (shown[image, j] == 1).nonzero()[0].tolist()
            pixel = tile(figure, layout, block, image, j + 1)[row * 16 + 3, column * 16 + 3].astype(int)
            assert np.ptp(pixel) > 60, (block, image, j)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_figure(kind: str) -> None:
    per_query, spatial = KINDS[kind].per_query, KINDS[kind].spatial
    keys = (8, 8) if spatial else (5, 5) if kind == "channel rows" else (1, 4 if kind == "boxes" else 12)
    shape = (2, 2 if kind == "sampling grid" else 1, 3 if per_query else 1, *keys)
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if kind == "boxes":
        weights = weights / 2 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    record = recording_of(weights, kind=kind, size=8)
    blocks = blocks_of(record)
    lines = sum(note.count("\n") + 1 for note in {block.note for block in blocks})
    figure = attention_figure(record)
    assert figure.shape == (*Layout(2, len(blocks[0].labels), RESOLUTION).size(len(blocks), lines), 3)
    assert kind in blocks[0].heading or kind == "softmax row"
    assert (attention_figure(record) == figure).all()


def test_signs_have_their_colors() -> None:
    weights = torch.zeros(2, 1, 3, 8, 8)
    weights[0, 0, 1, 2, 3], weights[0, 0, 1, 5, 6] = 2.0, -2.0
    shown = tile_of("signed weight", weights, 1)
    for cell, color in (((2, 3), SIGNS[1]), ((5, 6), SIGNS[0])):
        pixel = shown[cell[0] * 16 + 8, cell[1] * 16 + 8]
        assert pixel.argmax() == np.argmax(color)
        assert np.ptp(pixel) > 60
    assert np.ptp(shown[8, 8]) == 0


def test_the_opacity_of_a_gate_is_its_value() -> None:
    dark, closed, wide = (tile_of("spatial gate", torch.full((2, 1, 1, 8, 8), value)) for value in (0, 0.2, 1.0))
    np.testing.assert_allclose(closed - dark, 0.2 * (wide - dark), atol=1e-3)


def test_the_bases_that_vary_most_are_shown_with_their_numbers() -> None:
    weights = torch.full((2, 20, 1, 8, 8), 0.1)
    uneven = [1, 4, 5, 9, 12, 13, 17, 19]
    weights[:, uneven, 0, :4] = 0.9
    (block,) = blocks_of(recording_of(weights, kind="basis map", size=8))
    assert block.labels == tuple(f"basis {head + 1}" for head in uneven)
    assert len(block.labels) == MAX_COLUMNS
    shown = block.tile(0, 2, GRAY)
    assert shown[10, 10].max() > shown[120, 10].max()


def test_bars_are_sorted_and_as_high_as_their_values() -> None:
    shown = tile_of("channel gate", torch.tensor([0.25, 1.0, 0.5, 0.0]).expand(2, 1, 1, 1, 4))
    filled = (shown == COLORS[0]).all(-1).sum(0)
    assert [int(filled[16 + 32 * i]) for i in range(4)] == [128, 64, 32, 0]


def test_a_box_is_outlined_on_the_image_and_its_content_enlarged() -> None:
    record = recording_of(torch.tensor([0.25, 0.5, 0.75, 1.0]).expand(2, 1, 1, 1, 4), kind="boxes")
    record.images[0, 8:24, 16:32] = (200, 10, 10)
    (block,) = blocks_of(record)
    shown = block.tile(0, 0, enlarged(record.images[0], SIDE))
    assert (shown[4:-4, 4:-4] == (200, 10, 10)).all()
    image = tile(attention_figure(record), Layout(2, 1, RESOLUTION), 0, 0, 0)
    outlined = (image == COLORS[0]).all(-1)
    assert outlined[32:96, 64:].any(0).all()
    assert outlined.sum() == outlined[32:96, 64:].sum()


def test_text_grows_with_the_tiles() -> None:
    small, large = (attention_figure(recording_of(torch.rand(2, 1, 3, 8, 8)), tile=side) for side in (128, 512))
    assert large.shape == (4 * small.shape[0], 4 * small.shape[1], 3)
    heading = [np.flatnonzero((figure[: figure.shape[0] // 12] < 128).any((1, 2))) for figure in (small, large)]
    assert np.ptp(heading[1]) > 3 * np.ptp(heading[0])


@pytest.mark.parametrize(("frontend", "kinds"), [
    ("coarse_to_fine", {"frontend/saliency": "saliency", "frontend/patches": "boxes"}),
    ("zoom", {"frontend": "boxes"}),
])  # fmt: skip
def test_maps_of_a_front_end_have_a_figure(frontend: str, kinds: dict[str, str]) -> None:
    settings = ["discriminator.channels=4", "discriminator.attention={}", f"discriminator.frontend={frontend}"]
    discriminator = build_discriminator(load_config(None, settings), 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = discriminator_attention(discriminator, images, None, range(2), grid_points(4))
    assert {name: recorded.kind for name, recorded in found.maps.items()} == kinds
    boxes = next(recorded.weights for recorded in found.maps.values() if recorded.kind == "boxes")
    assert frontend != "zoom" or boxes[0, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert attention_figure(found).ndim == 3

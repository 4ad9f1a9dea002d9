"""The attention figure: places, colors and text, for every kind of map."""

import numpy as np
import pytest
import torch

from sagan.attention import KINDS, AttentionMap
from sagan.config.load import load_config
from sagan.inspection.figure import COLORS, MOST_COLUMNS, SIGNS, Layout, attention_figure, blocks_of, enlarged, opacity
from sagan.inspection.record import Recording, discriminator_attention, grid_points, pixel_points
from sagan.models.generator import build_discriminator
from sagan.utils.errors import UserError


def recording(
    weights: torch.Tensor, pixels: list[list[int]], resolution: int = 32, size: tuple[int, int] = (16, 16)
) -> Recording:
    """Mid-grey images with the maps `weights` (B, heads, k, H', W') in one module."""
    count, name = len(weights), "attention.16x16"
    return Recording(
        images=np.full((count, resolution, resolution, 3), 128, np.uint8),
        seeds=np.arange(count),
        labels=np.arange(count),
        points=pixel_points(torch.tensor(pixels), resolution, resolution).expand(count, -1, -1),
        maps={name: AttentionMap("softmax row", weights)},
        gamma={name: 0.5},
        resolution={name: size},
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


@pytest.mark.parametrize(("resolution", "side"), [(32, 128), (64, 128), (128, 128), (256, 256), (96, 192), (21, 147)])
def test_tiles_are_readable_multiples_of_the_image(resolution: int, side: int) -> None:
    """The side is the smallest multiple of the resolution from 128 on."""
    assert Layout(1, 1, resolution).side == side


def test_dots_have_the_points_colors_at_the_points_pixels() -> None:
    """Row and column are not exchanged, and every point has its own color."""
    pixels = [[3, 20], [16, 5], [28, 10]]
    figure, layout = attention_figure(recording(peaks([(0, 0)] * 3), pixels)), Layout(1, 3, 32)
    image = tile(figure, layout, 0, 0, 0)
    for j, (row, column) in enumerate(pixels):
        assert tuple(image[row * 4 + 2, column * 4 + 2]) == COLORS[j]
        overlay = tile(figure, layout, 0, 0, j + 1)
        assert tuple(overlay[row * 4 + 2, column * 4 + 2]) == COLORS[j]
    assert (image[60:70, 60:100] == 128).all()  # elsewhere the image as it is


def test_the_peak_colors_exactly_the_pixels_of_its_cell() -> None:
    """A map is neither shifted, transposed nor blended."""
    cells = [(1, 6), (7, 0), (4, 4)]
    figure, layout = attention_figure(recording(peaks(cells), [[30, 30]] * 3)), Layout(1, 3, 32)
    for j, (row, column) in enumerate(cells):
        overlay = tile(figure, layout, 0, 0, j + 1).astype(int)
        colored = np.abs(overlay - overlay.mean(2, keepdims=True)).max(2) > 20
        expected = np.zeros((128, 128), bool)
        expected[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = True
        seen = np.s_[:100]  # above the dot and the corner's text
        assert (colored[seen] == expected[seen]).all()
        if row < 6:
            assert overlay[row * 16 + 8, column * 16 + 8].argmax() == np.argmax(COLORS[j])


def test_uniform_attention_is_flat_and_its_noise_stays_faint() -> None:
    """Opacity is not stretched to full range, so noise does not look like structure."""
    uniform = np.full((8, 8), 1 / 64)
    assert np.allclose(opacity(uniform, (16, 16), 128), 0.25)
    noisy = uniform * np.random.default_rng(0).uniform(0.9, 1.1, (8, 8))
    assert np.ptp(opacity(noisy, (16, 16), 128)) < 0.06
    sharp = np.zeros((8, 8))
    sharp[2, 3] = 0.7
    assert opacity(sharp, (16, 16), 128).max() == 1


def test_pooled_keys_of_odd_maps_cover_the_cells_they_were_pooled_from() -> None:
    """3 keys of a 7-cell map cover 6 cells; the last row and column stay empty."""
    weights = np.eye(3)
    shown = opacity(weights, (7, 7), 70)
    for key in range(3):
        inside = np.s_[key * 20 : key * 20 + 20]
        assert (shown[inside, inside] == 1).all()
    assert shown[60:].max() == shown[:, 60:].max() == 0
    assert np.count_nonzero(shown) == 3 * 20 * 20


def test_rectangular_maps_are_stretched_to_the_image() -> None:
    """Rows and columns are not exchanged."""
    shown = opacity(peaks([(1, 6)], keys=(2, 8))[0, 0, 0].numpy(), (4, 16), 128)
    assert (shown[64:, 96:112] == 1).all()
    assert np.count_nonzero(shown) == 64 * 16


def test_smooth_blends_cells_and_keeps_their_place() -> None:
    """Smoothing stays in [0, 1] and keeps the peak in its cell."""
    weights = peaks([(2, 5)])[0, 0, 0].numpy()
    shown = opacity(weights, (16, 16), 128, smooth=True)
    assert len(np.unique(shown)) > 50
    assert shown.min() >= 0
    assert shown.max() <= 1
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y // 16, x // 16) == (2, 5)


def test_every_image_head_and_module_has_its_own_tiles() -> None:
    """No row or block shows the map of another."""
    weights = torch.cat([peaks([(0, 0), (1, 1)]), peaks([(2, 2), (3, 3)])])  # (2, 1, 2, 8, 8)
    weights = torch.cat([weights, weights.flip(3)], dim=1)
    record = recording(weights, [[31, 31], [31, 30]])
    other = AttentionMap("softmax row", weights.flip(4))
    record = Recording(**{
        **vars(record), "maps": {**record.maps, "attention.8x8": other}, "gamma": {},
        "resolution": {"attention.16x16": (16, 16), "attention.8x8": (8, 8)},
    })  # fmt: skip
    figure, layout = attention_figure(record), Layout(2, 2, 32)
    assert figure.shape == (*layout.size(4), 3)
    for block, shown in enumerate([weights[:, 0], weights[:, 1], weights[:, 0].flip(3), weights[:, 1].flip(3)]):
        for image in range(2):
            for j in range(2):
                row, column = (shown[image, j] == 1).nonzero()[0].tolist()
                pixel = tile(figure, layout, block, image, j + 1)[row * 16 + 3, column * 16 + 3].astype(int)
                assert np.ptp(pixel) > 60, (block, image, j)


def test_a_figure_is_the_same_bytes_again_and_no_map_is_refused() -> None:
    """Nothing random enters the figure; without maps there is none."""
    record = recording(peaks([(1, 2)]), [[5, 5]])
    assert (attention_figure(record) == attention_figure(record)).all()
    with pytest.raises(UserError, match="no attention"):
        attention_figure(Recording(**{**vars(record), "maps": {}}))


RESOLUTION, SIDE = 32, 128


def recording_of(kind: str, weights: torch.Tensor, points: int = 3) -> Recording:
    """Two mid-grey images with one map of 8×8 cells."""
    return Recording(
        images=np.full((2, RESOLUTION, RESOLUTION, 3), 128, np.uint8),
        seeds=np.arange(2),
        labels=np.full(2, -1),
        points=grid_points(points).expand(2, -1, -1),
        maps={"attention.8x8": AttentionMap(kind, weights)},
        gamma={},
        resolution={"attention.8x8": (8, 8)},
        class_names=(),
    )


def tile_of(kind: str, weights: torch.Tensor, column: int, image: int = 0) -> np.ndarray:
    """The pixels (side, side, 3) of a tile, without dots and text."""
    record = recording_of(kind, weights)
    (block,) = blocks_of(record)
    return block.tile(image, column, enlarged(record.images[image], SIDE))


def shape_of(kind: str) -> tuple[int, ...]:
    per_query, spatial = KINDS[kind].per_query, KINDS[kind].spatial
    keys = (8, 8) if spatial else (5, 5) if kind == "channel rows" else (1, 4 if kind == "boxes" else 12)
    return (2, 2 if kind == "sampling grid" else 1, 3 if per_query else 1, *keys)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_figure(kind: str):
    """Every kind in KINDS has a block, and the figure has the size of its layout."""
    weights = torch.rand(shape_of(kind), generator=torch.Generator().manual_seed(0))
    if kind == "boxes":
        weights = weights / 2 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    record = recording_of(kind, weights)
    blocks = blocks_of(record)
    lines = sum(note.count("\n") + 1 for note in {block.note for block in blocks})
    layout = Layout(2, len(blocks[0].labels), RESOLUTION)
    figure = attention_figure(record)
    assert figure.shape == (*layout.size(len(blocks), lines), 3)
    assert kind in blocks[0].heading or kind == "softmax row"


def test_signs_have_their_colors():
    """Positive and negative weights differ in color."""
    weights = torch.zeros(2, 1, 3, 8, 8)
    weights[0, 0, 1, 2, 3], weights[0, 0, 1, 5, 6] = 2.0, -2.0
    shown = tile_of("signed weight", weights, 1)
    for cell, color in (((2, 3), SIGNS[1]), ((5, 6), SIGNS[0])):
        pixel = shown[cell[0] * 16 + 8, cell[1] * 16 + 8]
        assert pixel.argmax() == np.argmax(color)
        assert np.ptp(pixel) > 60
    assert np.ptp(shown[8, 8]) == 0


def test_gates_are_not_stretched():
    """The opacity of a gate is its value."""
    closed, wide = (tile_of("spatial gate", torch.full((2, 1, 1, 8, 8), value), 0) for value in (0.2, 1.0))
    dark = tile_of("spatial gate", torch.zeros(2, 1, 1, 8, 8), 0)
    np.testing.assert_allclose(closed - dark, 0.2 * (wide - dark), atol=1e-3)


def test_the_most_uneven_bases_are_shown_with_their_numbers():
    """The bases that vary most are shown, with their own numbers."""
    weights = torch.full((2, 20, 1, 8, 8), 0.1)
    uneven = [1, 4, 5, 9, 12, 13, 17, 19]
    weights[:, uneven, 0, :4] = 0.9
    (block,) = blocks_of(recording_of("basis map", weights))
    assert block.labels == tuple(f"basis {head + 1}" for head in uneven)
    assert len(block.labels) == MOST_COLUMNS
    shown = block.tile(0, 2, np.full((SIDE, SIDE, 3), 128, np.float32))
    assert shown[10, 10].max() > shown[120, 10].max()


def test_bars_are_as_high_as_their_values():
    """Height, order and scale of the bars."""
    weights = torch.tensor([0.25, 1.0, 0.5, 0.0]).expand(2, 1, 1, 1, 4)
    shown = tile_of("channel gate", weights, 0)
    filled = (shown == COLORS[0]).all(-1).sum(0)
    assert [int(filled[16 + 32 * i]) for i in range(4)] == [128, 64, 32, 0]


def test_boxes_show_what_they_hold():
    """A box is (top, left, bottom, right), and its content is that part of the image."""
    record = recording_of("boxes", torch.tensor([0.25, 0.5, 0.75, 1.0]).expand(2, 1, 1, 1, 4))
    record.images[0, 8:24, 16:32] = (200, 10, 10)
    (block,) = blocks_of(record)
    shown = block.tile(0, 0, enlarged(record.images[0], SIDE))
    assert (shown[4:-4, 4:-4] == (200, 10, 10)).all()
    figure, layout = attention_figure(record), Layout(2, 1, RESOLUTION)
    y, x = layout.tile(0, 0, 0)
    outlined = (figure[y : y + SIDE, x : x + SIDE] == COLORS[0]).all(-1)
    assert outlined[32:96, 64:128].any(0).all()
    assert not outlined[:32].any()
    assert not outlined[:, :64].any()


def test_text_grows_with_the_tiles():
    """A figure of four times the size has text of four times the size."""
    weights = torch.rand(2, 1, 3, 8, 8)
    small, large = (attention_figure(recording_of("softmax row", weights), tile=side) for side in (128, 512))
    assert large.shape == (4 * small.shape[0], 4 * small.shape[1], 3)
    heading = [np.flatnonzero((figure[: figure.shape[0] // 12] < 128).any((1, 2))) for figure in (small, large)]
    assert np.ptp(heading[1]) > 3 * np.ptp(heading[0])


@pytest.mark.parametrize("frontend", ["coarse_to_fine", "zoom"])
def test_what_a_front_end_looks_at_is_shown(frontend: str):
    """Saliency, patches and boxes of a front-end are recorded and have a figure."""
    settings = ["discriminator.channels=4", "discriminator.attention={}", f"discriminator.frontend={frontend}"]
    discriminator = build_discriminator(load_config(None, settings), 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = discriminator_attention(discriminator, images, None, range(2), grid_points(4))
    kinds = {name: recorded.kind for name, recorded in found.maps.items()}
    if frontend == "zoom":
        assert kinds == {"frontend": "boxes"}
        assert found.maps["frontend"].weights[0, 0, 0, 0].tolist() == [0, 0, 1, 1]
    else:
        assert kinds == {"frontend/saliency": "saliency", "frontend/patches": "boxes"}
    boxes = next(recorded.weights for recorded in found.maps.values() if recorded.kind == "boxes")
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert attention_figure(found).ndim == 3

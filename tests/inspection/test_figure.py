import numpy as np
import pytest
import torch

from sagan.attention import AttentionMap
from sagan.errors import UserError
from sagan.inspection.figure import Layout, attention_figure
from sagan.inspection.maps import Recording
from sagan.inspection.points import pixel_points
from sagan.inspection.tiles import COLOURS, opacity


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
    """Breaks when a tile is below 96 pixels or is not an exact enlargement."""
    assert Layout(1, 1, resolution).side == side


def test_dots_have_the_points_colours_at_the_points_pixels() -> None:
    """Breaks when rows and columns are exchanged, or a dot has another point's colour."""
    pixels = [[3, 20], [16, 5], [28, 10]]
    figure, layout = attention_figure(recording(peaks([(0, 0)] * 3), pixels)), Layout(1, 3, 32)
    image = tile(figure, layout, 0, 0, 0)
    for j, (row, column) in enumerate(pixels):
        assert tuple(image[row * 4 + 2, column * 4 + 2]) == COLOURS[j]
        overlay = tile(figure, layout, 0, 0, j + 1)
        assert tuple(overlay[row * 4 + 2, column * 4 + 2]) == COLOURS[j]
    assert (image[60:70, 60:100] == 128).all()  # elsewhere the image as it is


def test_the_peak_colours_exactly_the_pixels_of_its_cell() -> None:
    """Breaks when a map is drawn shifted, transposed, blended or in another tile."""
    cells = [(1, 6), (7, 0), (4, 4)]
    figure, layout = attention_figure(recording(peaks(cells), [[30, 30]] * 3)), Layout(1, 3, 32)
    for j, (row, column) in enumerate(cells):
        overlay = tile(figure, layout, 0, 0, j + 1).astype(int)
        coloured = np.abs(overlay - overlay.mean(2, keepdims=True)).max(2) > 20
        expected = np.zeros((128, 128), bool)
        expected[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = True
        seen = np.s_[:100]  # above the dot and the corner's text
        assert (coloured[seen] == expected[seen]).all()
        if row < 6:
            assert overlay[row * 16 + 8, column * 16 + 8].argmax() == np.argmax(COLOURS[j])


def test_uniform_attention_is_flat_and_its_noise_stays_faint() -> None:
    """Breaks when a map is stretched to full range, so that noise looks like structure."""
    uniform = np.full((8, 8), 1 / 64)
    assert np.allclose(opacity(uniform, (16, 16), 128), 0.25)
    noisy = uniform * np.random.default_rng(0).uniform(0.9, 1.1, (8, 8))
    assert np.ptp(opacity(noisy, (16, 16), 128)) < 0.06
    sharp = np.zeros((8, 8))
    sharp[2, 3] = 0.7
    assert opacity(sharp, (16, 16), 128).max() == 1


def test_pooled_keys_of_odd_maps_cover_the_cells_they_were_pooled_from() -> None:
    """Breaks when 3 keys of a 7-cell map are stretched over the whole tile."""
    weights = np.eye(3)
    shown = opacity(weights, (7, 7), 70)
    for key in range(3):
        inside = np.s_[key * 20 : key * 20 + 20]
        assert (shown[inside, inside] == 1).all()
    assert shown[60:].max() == shown[:, 60:].max() == 0
    assert np.count_nonzero(shown) == 3 * 20 * 20


def test_rectangular_maps_are_stretched_to_the_image() -> None:
    """Breaks when rows and columns are exchanged."""
    shown = opacity(peaks([(1, 6)], keys=(2, 8))[0, 0, 0].numpy(), (4, 16), 128)
    assert (shown[64:, 96:112] == 1).all()
    assert np.count_nonzero(shown) == 64 * 16


def test_smooth_blends_cells_and_keeps_their_place() -> None:
    """Breaks when smoothing is not done, or leaves [0, 1]."""
    weights = peaks([(2, 5)])[0, 0, 0].numpy()
    shown = opacity(weights, (16, 16), 128, smooth=True)
    assert len(np.unique(shown)) > 50
    assert shown.min() >= 0
    assert shown.max() <= 1
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y // 16, x // 16) == (2, 5)


def test_every_image_head_and_module_has_its_own_tiles() -> None:
    """Breaks when a row or a block shows another's map."""
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
    """Breaks when something random or the global state enters the drawing; when no maps draw an empty page."""
    record = recording(peaks([(1, 2)]), [[5, 5]])
    assert (attention_figure(record) == attention_figure(record)).all()
    with pytest.raises(UserError, match="no attention"):
        attention_figure(Recording(**{**vars(record), "maps": {}}))

"""The figure of every kind of map: gates, bases, bars, boxes and signed weights beside the maps of points."""

import numpy as np
import pytest
import torch

from sagan.attention import KINDS, AttentionMap
from sagan.config import load_config
from sagan.inspection.blocks import MOST_COLUMNS, blocks_of
from sagan.inspection.figure import Layout, attention_figure
from sagan.inspection.judged import judged_attention
from sagan.inspection.maps import Recording
from sagan.inspection.points import grid_points
from sagan.inspection.tiles import COLOURS, SIGNS, enlarged
from sagan.networks import build_discriminator

RESOLUTION, SIDE = 32, 128


def recording(kind: str, weights: torch.Tensor, points: int = 3) -> Recording:
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


def tile(kind: str, weights: torch.Tensor, column: int, image: int = 0) -> np.ndarray:
    """The pixels (side, side, 3) of a tile, without dots and text."""
    record = recording(kind, weights)
    (block,) = blocks_of(record)
    return block.tile(image, column, enlarged(record.images[image], SIDE))


def shape_of(kind: str) -> tuple[int, ...]:
    per_query, spatial = KINDS[kind].per_query, KINDS[kind].spatial
    keys = (8, 8) if spatial else (5, 5) if kind == "channel rows" else (1, 4 if kind == "boxes" else 12)
    return (2, 2 if kind == "sampling grid" else 1, 3 if per_query else 1, *keys)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_figure(kind: str):
    """Breaks when a kind of KINDS has no block, or its figure does not have the size of its layout."""
    weights = torch.rand(shape_of(kind), generator=torch.Generator().manual_seed(0))
    if kind == "boxes":
        weights = weights / 2 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    record = recording(kind, weights)
    blocks = blocks_of(record)
    lines = sum(note.count("\n") + 1 for note in {block.note for block in blocks})
    layout = Layout(2, len(blocks[0].labels), RESOLUTION)
    figure = attention_figure(record)
    assert figure.shape == (*layout.size(len(blocks), lines), 3)
    assert kind in blocks[0].heading or kind == "softmax row"


def test_signs_have_their_colours():
    """Breaks when a negative weight is drawn as nothing, or as a positive one."""
    weights = torch.zeros(2, 1, 3, 8, 8)
    weights[0, 0, 1, 2, 3], weights[0, 0, 1, 5, 6] = 2.0, -2.0
    shown = tile("signed weight", weights, 1)
    for cell, colour in (((2, 3), SIGNS[1]), ((5, 6), SIGNS[0])):
        pixel = shown[cell[0] * 16 + 8, cell[1] * 16 + 8]
        assert pixel.argmax() == np.argmax(colour)
        assert np.ptp(pixel) > 60
    assert np.ptp(shown[8, 8]) == 0


def test_gates_are_not_stretched():
    """Breaks when a gate of 0.2 everywhere is drawn as if it were open."""
    closed, wide = (tile("spatial gate", torch.full((2, 1, 1, 8, 8), value), 0) for value in (0.2, 1.0))
    dark = tile("spatial gate", torch.zeros(2, 1, 1, 8, 8), 0)
    np.testing.assert_allclose(closed - dark, 0.2 * (wide - dark), atol=1e-3)


def test_the_most_uneven_bases_are_shown_with_their_numbers():
    """Breaks when the bases are not those that vary most, or are numbered as columns."""
    weights = torch.full((2, 20, 1, 8, 8), 0.1)
    uneven = [1, 4, 5, 9, 12, 13, 17, 19]
    weights[:, uneven, 0, :4] = 0.9
    (block,) = blocks_of(recording("basis map", weights))
    assert block.labels == tuple(f"basis {head + 1}" for head in uneven)
    assert len(block.labels) == MOST_COLUMNS
    shown = block.tile(0, 2, np.full((SIDE, SIDE, 3), 128, np.float32))
    assert shown[10, 10].max() > shown[120, 10].max()


def test_bars_are_as_high_as_their_values():
    """Breaks when a bar's height, its order or its scale is wrong."""
    weights = torch.tensor([0.25, 1.0, 0.5, 0.0]).expand(2, 1, 1, 1, 4)
    shown = tile("channel gate", weights, 0)
    filled = (shown == COLOURS[0]).all(-1).sum(0)
    assert [int(filled[16 + 32 * i]) for i in range(4)] == [128, 64, 32, 0]


def test_boxes_show_what_they_hold():
    """Breaks when a box is read as (left, top), or its crop is another part of the image."""
    record = recording("boxes", torch.tensor([0.25, 0.5, 0.75, 1.0]).expand(2, 1, 1, 1, 4))
    record.images[0, 8:24, 16:32] = (200, 10, 10)
    (block,) = blocks_of(record)
    shown = block.tile(0, 0, enlarged(record.images[0], SIDE))
    assert (shown[4:-4, 4:-4] == (200, 10, 10)).all()
    figure, layout = attention_figure(record), Layout(2, 1, RESOLUTION)
    y, x = layout.tile(0, 0, 0)
    outlined = (figure[y : y + SIDE, x : x + SIDE] == COLOURS[0]).all(-1)
    assert outlined[32:96, 64:128].any(0).all()
    assert not outlined[:32].any()
    assert not outlined[:, :64].any()


def test_text_grows_with_the_tiles():
    """Breaks when a figure of four times the size has the small figure's text."""
    weights = torch.rand(2, 1, 3, 8, 8)
    small, large = (attention_figure(recording("softmax row", weights), tile=side) for side in (128, 512))
    assert large.shape == (4 * small.shape[0], 4 * small.shape[1], 3)
    heading = [np.flatnonzero((figure[: figure.shape[0] // 12] < 128).any((1, 2))) for figure in (small, large)]
    assert np.ptp(heading[1]) > 3 * np.ptp(heading[0])


@pytest.mark.parametrize("frontend", ["coarse_to_fine", "zoom"])
def test_what_a_front_end_looks_at_is_shown(frontend: str):
    """Breaks when a front-end's saliency, patches or boxes are not recorded, or have no figure."""
    settings = ["discriminator.channels=4", "discriminator.attention={}", f"discriminator.frontend={frontend}"]
    discriminator = build_discriminator(load_config(None, settings), 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = judged_attention(discriminator, images, None, range(2), grid_points(4))
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

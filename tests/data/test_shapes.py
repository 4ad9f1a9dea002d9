"""The embedded data set: deterministic, the same scene at every size, two separate objects that agree."""

import hashlib

import numpy as np
import pytest

from sagan.data.shapes import (
    CLASSES,
    MARGIN,
    ONE_PAIR,
    SATURATION,
    TINT,
    TWO_PAIRS,
    VALUE,
    Variant,
    hue_to_rgb,
    object_masks,
    placement,
    render,
    render_many,
    rgb_to_hue,
    scenes,
    variant_of,
)
from sagan.utils.errors import UserError

RESOLUTIONS = (32, 64, 128, 256)


def chroma(images: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 to (...): HSV chroma in [0, 1]."""
    return np.ptp(images.astype(float), axis=-1) / 255


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_an_image_depends_on_seed_and_index_alone(resolution: int) -> None:
    images, labels = render_many(20, resolution, seed=3)
    assert images.shape == (20, resolution, resolution, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    for index in (0, 7, 19):
        image, label, where = render(index, resolution, seed=3)
        assert np.array_equal(image, images[index])
        assert label == labels[index] == where.label
        assert where == placement(index, seed=3)
    assert not np.array_equal(images, render_many(20, resolution, seed=4)[0])


def test_chunks_do_not_show() -> None:
    images, _ = render_many(1100, 16)
    assert np.array_equal(images[1099], render(1099, 16)[0])


def test_the_bytes_are_fixed() -> None:
    digest = hashlib.sha256(render_many(64, 32)[0].tobytes()).hexdigest()
    assert digest == "17de97c2542c307fc3e237a502689e54cbee3894866e7d5dfb3a4c4aa37cae16"


def test_classes_are_balanced_exactly() -> None:
    assert len(CLASSES) >= 4
    _, labels = render_many(40, 16)
    assert np.bincount(labels).tolist() == [40 // len(CLASSES)] * len(CLASSES)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_objects_keep_to_their_halves(resolution: int) -> None:
    half, margin = resolution // 2, int(MARGIN * resolution)
    for index in range(200):
        left, right = object_masks(placement(index), resolution)
        inside = np.zeros((resolution, resolution), bool)
        inside[margin : resolution - margin, margin : half - margin] = True
        assert left.any()
        assert right.any()
        assert not (left & ~inside).any()
        assert not (right[:, ::-1] & ~inside).any()


def test_two_pairs_keep_to_their_quarters_and_have_their_hues() -> None:
    digest = hashlib.sha256(render_many(64, 32, variant=TWO_PAIRS)[0].tobytes()).hexdigest()
    assert digest == "d7c1ac1b7157c13882848b240606af3225c6cabc45c28ce33db2088e5e197dac"
    for index in range(60):
        image, _, where = render(index, 64, variant=TWO_PAIRS)
        for number, mask in enumerate(object_masks(where, 64)):
            rows, columns = np.nonzero(mask)
            assert set(rows // 32) == {number // 2}
            assert set(columns // 32) == {number % 2}
            color = np.median(image[mask], axis=0, keepdims=True) / 255
            assert (
                abs((rgb_to_hue(color)[0] - where.hues[(0, 1, 1, 0)[number]] - 180 * (number > 1) + 180) % 360 - 180)
                < 2
            )
    hues = scenes(range(4000), variant=TWO_PAIRS).hues
    assert np.abs(np.bincount(((hues[:, 0] - hues[:, 1]) % 360 // 30).astype(int)) / 4000 - 1 / 12).max() < 0.02
    assert TWO_PAIRS.partners == [3, 2, 1, 0]
    assert variant_of(TWO_PAIRS.classes) is TWO_PAIRS
    assert variant_of(("cat", "dog")) is None


@pytest.mark.parametrize("variant", [ONE_PAIR, TWO_PAIRS])
def test_masks_are_where_the_color_is(variant: Variant) -> None:
    for index in range(40):
        image, _, where = render(index, 64, variant=variant)
        masks = object_masks(where, 64)
        colored = chroma(image) > SATURATION * VALUE / 2
        wrong = colored ^ masks.any(0)
        assert wrong.sum() < 0.05 * masks.sum()
        for mask, (x, y), radius in zip(masks, where.centers, where.radii, strict=True):
            rows, columns = np.nonzero(mask)
            assert columns.mean() + 0.5 == pytest.approx(64 * x, abs=0.5)
            assert rows.mean() + 0.5 == pytest.approx(64 * y, abs=0.5)
            assert variant.radii[0] <= radius <= variant.radii[1]


def test_both_objects_have_the_hue_of_the_scene_and_the_background_is_nearly_gray() -> None:
    for index in range(40):
        image, _, where = render(index, 128)
        masks = object_masks(where, 128)
        for mask in masks:
            color = np.median(image[mask], axis=0, keepdims=True) / 255
            assert abs((rgb_to_hue(color)[0] - where.hues[0] + 180) % 360 - 180) < 1
            assert np.ptp(color) == pytest.approx(SATURATION * VALUE, abs=0.01)
        assert np.percentile(chroma(image)[~masks.any(0)], 90) < TINT + 0.01


def test_a_scene_is_the_same_at_every_resolution() -> None:
    small = render_many(12, 64)[0].astype(float)
    large = render_many(12, 256)[0].astype(float).reshape(12, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 0.5
    assert np.abs(small - large).max() < 80  # on outlines only


def test_outlines_are_antialiased() -> None:
    image, label, _ = render(CLASSES.index("disc"), 64)
    assert label == CLASSES.index("disc")
    values = chroma(image)
    between = (values > 0.2) & (values < 0.6)
    assert between.sum() > 20


def test_what_varies_spreads_over_its_whole_range() -> None:
    many = scenes(range(4000))
    hues = np.bincount((many.hues[:, 0] / 30).astype(int), minlength=12) / 4000
    assert np.abs(hues - 1 / 12).max() < 0.02
    assert many.hues.min() >= 0
    assert many.hues.max() < 360
    assert np.allclose([many.radii.min(), many.radii.max()], ONE_PAIR.radii, atol=0.001)
    heights = many.centers[:, :, 1]
    assert heights.min() < 0.25
    assert heights.max() > 0.75
    assert many.centers[:, 0, 0].std() > 0.015
    for left, right in ((heights[:, 0], heights[:, 1]), (many.radii[:, 0], many.radii[:, 1])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.06
    hue_of_class = [many.hues[many.labels == label].mean() for label in range(len(CLASSES))]
    assert np.allclose(hue_of_class, 180, atol=15)
    lightness = many.backgrounds.mean((1, 2))
    assert lightness.min() < 0.25
    assert lightness.max() > 0.85


def test_hue_survives_the_round_trip() -> None:
    hues = np.arange(0, 360, 7.5)
    back = rgb_to_hue(hue_to_rgb(hues, SATURATION, VALUE))
    assert np.abs((back - hues + 180) % 360 - 180).max() < 1e-3
    assert np.allclose(hue_to_rgb(np.array([0.0, 120.0, 240.0]), 1, 1), np.eye(3))


@pytest.mark.parametrize("call", [lambda: render(-1, 32), lambda: render(0, 33), lambda: render_many(0, 32)])
def test_what_cannot_be_drawn_is_refused(call) -> None:
    with pytest.raises(UserError, match="shapes: "):
        call()

"""Coherence of images with known scores: real, shuffled, degraded, collapsed, random."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sagan.data import shapes
from sagan.data.shapes import CLASSES, TWO_PAIRS, render_many, scenes
from sagan.evaluation.coherence import Coherence, clear_objects, coherence, find_objects
from sagan.utils.errors import UserError

COUNT = 400


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    """Renders of a seed that the reference histograms do not use."""
    return render_many(COUNT, 32, seed=1)


def exchange_right_halves(images: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Give every image the right half of another one of its group."""
    rng = np.random.default_rng(0)
    source = np.arange(len(images))
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        source[members] = np.roll(members, 1)
    mixed = images.copy()
    middle = images.shape[2] // 2
    mixed[:, :, middle:] = images[source][:, :, middle:]
    return mixed


def degrade(images: np.ndarray, blur: float, noise: float) -> np.ndarray:
    """Blur by `blur` pixels and add Gaussian noise of `noise` gray levels."""
    blurred = gaussian_filter(images.astype(np.float32), (0, blur, blur, 0))
    noisy = blurred + np.random.default_rng(0).normal(0, noise, blurred.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_real_images_score_about_one(resolution: int) -> None:
    images, labels = render_many(200, resolution, seed=1)
    score = coherence(images, labels)
    assert score.all_objects == 1
    assert score.hue_agreement > 0.99
    assert score.hue_difference < 1
    assert score.shape_agreement == 1
    assert score.label_agreement == 1
    assert max(score.hue_distance, score.position_distance, score.class_distance) < 0.06
    assert score.coherence > 0.93


def test_shuffled_halves_agree_by_chance_only(real: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = real
    score = coherence(exchange_right_halves(images, np.zeros(COUNT)), labels)
    assert score.all_objects == 1
    assert score.hue_difference == pytest.approx(90, abs=8)
    assert score.shape_agreement == pytest.approx(1 / len(CLASSES), abs=0.08)
    assert max(score.hue_distance, score.position_distance, score.class_distance) < 0.06
    within_classes = coherence(exchange_right_halves(images, labels), labels)
    assert within_classes.shape_agreement == within_classes.label_agreement == 1
    assert max(abs(score.hue_agreement), abs(within_classes.hue_agreement)) < 0.1
    assert score.coherence < 0.02
    assert within_classes.coherence < 0.1


def test_a_hue_tied_to_the_class_is_no_agreement() -> None:
    """Each class has one narrow hue, which a chance level over all images would count as agreement."""
    images, labels = render_many(3000, 32, seed=1)
    kept = np.abs(scenes(range(3000), seed=1).hues[:, 0] - 90 * labels - 45) < 15
    images, labels = images[kept], labels[kept]
    score = coherence(exchange_right_halves(images, labels), labels)
    assert score.hue_difference < 15
    assert score.shape_agreement == 1
    assert abs(score.hue_agreement) < 0.15


def test_hue_agreement_is_the_share_of_agreeing_images(real: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = real
    mixed = np.where(np.arange(COUNT)[:, None, None, None] < COUNT / 3, exchange_right_halves(images, labels), images)
    assert coherence(mixed, labels).hue_agreement == pytest.approx(2 / 3, abs=0.08)


@pytest.mark.parametrize(("blur", "noise"), [(1.0, 12), (0.0, 25), (0.5, 16)])
def test_blur_and_noise_are_tolerated(real: tuple[np.ndarray, np.ndarray], blur: float, noise: float) -> None:
    score = coherence(degrade(real[0], blur, noise), real[1])
    assert score.all_objects > 0.98
    assert score.shape_agreement > 0.97
    assert score.hue_agreement > 0.95
    assert score.coherence > 0.88
    pale = to_uint8(0.4 * real[0].mean(3, keepdims=True) + 0.6 * real[0])
    assert coherence(pale).coherence > 0.9


@pytest.mark.parametrize("images", [
    to_uint8(np.random.default_rng(0).normal(128, 64, (300, 32, 32, 3))),
    to_uint8(np.random.default_rng(0).uniform(0, 256, (300, 32, 32, 3))),
    to_uint8(128 + 900 * gaussian_filter(np.random.default_rng(0).normal(size=(300, 32, 32, 3)), (0, 2, 2, 0))),
    np.full((300, 32, 32, 3), 128, np.uint8),
], ids=["gaussian", "uniform", "smooth", "gray"])  # fmt: skip
def test_noise_and_nothing_score_zero(images: np.ndarray) -> None:
    score = coherence(images)
    assert score.all_objects < 0.08
    assert score.coherence < 0.01


def test_a_collapsed_generator_scores_zero(real: tuple[np.ndarray, np.ndarray]) -> None:
    one = coherence(np.repeat(real[0][:1], COUNT, axis=0))
    assert one.all_objects == 1
    assert one.coherence < 0.01
    assert one.hue_agreement == pytest.approx(0, abs=0.01)
    assert min(one.hue_distance, one.position_distance, one.class_distance) > 0.7
    few = coherence(real[0][np.arange(COUNT) % 12])
    assert few.coherence < 0.5


def test_images_without_two_objects_are_failures(real: tuple[np.ndarray, np.ndarray]) -> None:
    images = real[0][:200]
    missing, merged, third = images.copy(), images.copy(), images.copy()
    missing[:, :, 16:] = images[:, :1, :1]
    merged[:, 6:26, 6:26] = (250, 20, 20)
    third[:, 1:5, 14:18] = (20, 20, 250)
    assert coherence(missing).all_objects == 0
    assert coherence(merged).all_objects < 0.02
    assert coherence(third).all_objects < 0.05
    speck = images.copy()
    speck[:, 0, 15:17] = (0, 255, 0)
    assert coherence(speck).all_objects > 0.98
    half = np.concatenate([missing[:100], images[100:]])
    assert coherence(half).coherence == pytest.approx(0.5, abs=0.08)


def test_missing_classes_lower_the_score(real: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = real
    discs = images[labels == 0]
    assert coherence(discs).class_distance == pytest.approx(0.75, abs=0.05)
    assert coherence(discs, np.full(len(discs), 1)).label_agreement == 0


@pytest.mark.parametrize("resolution", [32, 128])
def test_objects_are_found_where_they_are(resolution: int) -> None:
    images, _ = render_many(100, resolution, seed=2)
    truth, found = scenes(range(100), seed=2), find_objects(images)
    assert found.image.tolist() == np.repeat(np.arange(100), 2).tolist()
    assert np.abs(found.center.reshape(-1, 2, 2) - truth.centers).max() < 0.01
    assert np.abs((found.hue.reshape(-1, 2) - truth.hues + 180) % 360 - 180).max() < 2
    assert np.array_equal(found.shape.reshape(-1, 2), np.stack([truth.labels] * 2, axis=1))
    assert found.scores.shape == (200, len(CLASSES))
    assert 0.03 < found.area.min() < found.area.max() < 0.13


def test_the_record_is_flat_numbers(real: tuple[np.ndarray, np.ndarray]) -> None:
    with_labels, without = coherence(real[0], real[1]).to_dict(), coherence(real[0]).to_dict()
    assert all(type(value) is float for value in with_labels.values())
    assert set(with_labels) - set(without) == {"label_agreement"}
    fields = {"two_objects", *Coherence.__dataclass_fields__} - {"all_objects", "pair_distance"}
    assert set(with_labels) == fields


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    return render_many(COUNT, 32, seed=1, variant=TWO_PAIRS)


def test_two_pairs_are_found_where_they_are(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    truth = scenes(range(COUNT), seed=1, variant=TWO_PAIRS)
    which, found = clear_objects(find_objects(pairs[0]), TWO_PAIRS)
    assert len(which) > 0.98 * COUNT
    assert np.abs(found.center.reshape(-1, 4, 2) - truth.centers[which]).max() < 0.02
    expected = truth.hues[which][:, [0, 1, 1, 0]] + [0, 0, 180, 180]
    assert np.abs((found.hue.reshape(-1, 4) - expected + 180) % 360 - 180).max() < 3


def test_two_pairs_score_about_one(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    score = coherence(*pairs, TWO_PAIRS)
    assert score.all_objects > 0.98
    assert score.hue_agreement > 0.99
    assert score.shape_agreement == score.label_agreement == 1
    assert score.pair_distance is not None
    assert max(score.hue_distance, score.position_distance, score.class_distance, score.pair_distance) < 0.08
    assert score.coherence > 0.85
    assert "four_objects" in score.to_dict()
    assert coherence(degrade(pairs[0], 0.5, 12), pairs[1], TWO_PAIRS).hue_agreement > 0.95


def test_each_pair_has_to_agree_by_itself(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = pairs
    one_broken, both_broken = images.copy(), exchange_right_halves(images, labels)
    one_broken[:, 16:, 16:] = both_broken[:, 16:, 16:]
    assert coherence(one_broken, labels, TWO_PAIRS).hue_agreement == pytest.approx(0.5, abs=0.06)
    score = coherence(both_broken, labels, TWO_PAIRS)
    assert abs(score.hue_agreement) < 0.08
    assert score.all_objects == score.label_agreement == 1
    assert score.coherence < 0.08


def test_one_hue_for_both_pairs_is_far_from_the_data(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = pairs
    top = images.copy()
    top[:, 16:] = images[:, :16]  # the top objects are of different pairs
    assert coherence(top, labels, TWO_PAIRS).hue_agreement < 0.1
    hue_of_first = scenes(range(COUNT), seed=1, variant=TWO_PAIRS).hues[:, 0]
    drawn = replace(scenes(range(COUNT), seed=1, variant=TWO_PAIRS), hues=np.stack([hue_of_first] * 2, axis=1))
    score = coherence(shapes._draw(drawn, 32, TWO_PAIRS), labels, TWO_PAIRS)
    assert score.hue_agreement > 0.99
    assert 1 - 1 / 12 >= score.pair_distance > 0.75  # one of 12 bins
    assert score.coherence < 0.2


def test_one_pair_is_not_two_and_noise_is_nothing(real: tuple[np.ndarray, np.ndarray]) -> None:
    assert coherence(real[0], variant=TWO_PAIRS).all_objects == 0
    score = coherence(np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8), variant=TWO_PAIRS)
    assert score.all_objects < 0.02
    assert score.coherence == 0


def test_wrong_input_is_refused() -> None:
    good = render_many(4, 32)[0]
    for images in (good.astype(np.float32), good[..., 0], good[:, :20], good[:0], good[:, ::4, ::4]):
        with pytest.raises(UserError, match="coherence: "):
            coherence(images)
    with pytest.raises(UserError, match="labels"):
        coherence(good, np.zeros(3, int))

"""What updates consume: the same global batch at any number of processes, each image once an epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_data
from torch import Tensor

from sagan.data.dataset import PreparedData
from sagan.training.batches import Batches

COUNT, BATCH = 40, 16
DRAWN = [(3, "generator", 0), (3, "generator", 1), (3, "discriminator", 0), (4, "generator", 0)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return tiny_data(tmp_path_factory.mktemp("data") / "shapes", COUNT)


def batches(rank: int = 0, world: int = 1, accumulation: int = 1, **changes: object) -> Batches:
    whole = Batches(
        seed=3, batch_size=BATCH, accumulation=accumulation, rank=rank, world=world, device=torch.device("cpu"),
        z_dim=5, num_classes=4, policy=("color", "cutout"), flips=True, channels_last=True, transforms=True, noise=True,
    )  # fmt: skip
    return replace(whole, **changes)


def fields(micro_batches: list) -> list[Tensor]:
    """Each field of the micro-batches, concatenated."""
    every = zip(*(vars(m).values() for m in micro_batches), strict=True)
    return [torch.cat(parts) for parts in every if parts[0] is not None]


def global_batch(data: PreparedData, update: int, world: int, accumulation: int) -> list[Tensor]:
    """All that one update consumes over all processes, in order."""
    shares = []
    for rank in range(world):
        mine = batches(rank, world, accumulation)
        reals = mine.reals(update, mine.fetch(data)(update))
        draws = mine.latents("discriminator", update) + mine.latents("generator", update)
        assert len(reals) == accumulation
        assert {len(m.images) for m in reals} == {BATCH // world // accumulation}
        shares.append([*fields(reals), *fields(draws[:accumulation]), *fields(draws[accumulation:])])
    return [torch.cat(parts) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_slices_make_up_the_global_batch(data: PreparedData, world: int, accumulation: int) -> None:
    for update in (0, 7):
        whole = global_batch(data, update, 1, 1)
        for part, expected in zip(global_batch(data, update, world, accumulation), whole, strict=True):
            assert torch.equal(part, expected)


def test_each_image_once_an_epoch(data: PreparedData) -> None:
    fetch = batches().fetch(data)
    seen = np.concatenate([fetch(update)[0] for update in range(5)])
    assert len(seen) == 2 * COUNT
    index = {image.tobytes(): i for i, image in enumerate(np.asarray(data.images))}
    order = [index[image.tobytes()] for image in seen]
    assert len(index) == COUNT
    assert sorted(order[:COUNT]) == sorted(order[COUNT:]) == list(range(COUNT))
    assert order[:COUNT] != order[COUNT:]


@pytest.mark.parametrize("flips", [False, True])
def test_reals_are_the_data(data: PreparedData, flips: bool) -> None:
    mine, flipped = batches(flips=flips), 0
    truth = {image.tobytes(): label for image, label in zip(np.asarray(data.images), data.labels, strict=True)}
    for update in range(6):
        images, labels = mine.fetch(data)(update)
        (reals,) = mine.reals(update, (images, labels))
        assert reals.labels.tolist() == [truth[image.tobytes()] for image in images]
        for found, pixels in zip(reals.images, images, strict=True):
            straight = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
            mirrored = torch.allclose(found, straight.flip(2), atol=1e-6)
            assert mirrored or torch.allclose(found, straight, atol=1e-6)
            flipped += mirrored
    assert (30 <= flipped <= 66) if flips else flipped == 0  # of 96


def test_draws_differ_where_they_must() -> None:
    drawn = [batches(seed=seed).latents(player, update)[0].z for seed, player, update in DRAWN]
    rows = torch.cat(drawn)
    assert len(rows.unique(dim=0)) == 4 * BATCH
    labels = torch.cat([batches().latents("generator", update)[0].labels for update in range(40)])
    assert labels.bincount(minlength=4).min() > 100  # of 160 expected
    assert abs(rows.mean()) < 0.2
    assert abs(rows.std() - 1) < 0.2


def test_without_classes_there_are_no_labels(data: PreparedData) -> None:
    with_labels, without = batches(accumulation=2), batches(accumulation=2, num_classes=0)
    assert all(draws.labels is None for draws in without.latents("generator", 0))
    reals = without.reals(0, without.fetch(data)(0))
    assert all(m.labels is None for m in reals)
    assert torch.equal(reals[1].images, with_labels.reals(0, with_labels.fetch(data)(0))[1].images)


def test_consistency_draws_leave_the_others_alone(data: PreparedData) -> None:
    mine, without = batches(), batches(transforms=False, noise=False)
    (full,), (plain,) = mine.latents("discriminator", 3), without.latents("discriminator", 3)
    assert torch.equal(full.z, plain.z)
    assert plain.transform is plain.noise is None
    (reals,) = mine.reals(3, mine.fetch(data)(3))
    (later,) = mine.latents("discriminator", 4)
    (other,) = mine.latents("generator", 3)
    assert len(torch.cat([full.transform, later.transform, reals.transform]).unique(dim=0)) == 3 * BATCH
    assert len(torch.cat([full.noise, later.noise, other.noise]).unique(dim=0)) == 3 * BATCH
    assert other.transform is None


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(data: PreparedData, channels_last: bool) -> None:
    mine = batches(channels_last=channels_last)
    (reals,) = mine.reals(0, mine.fetch(data)(0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert reals.images.is_contiguous(memory_format=layout)
    assert torch.equal(reals.images, batches().reals(0, mine.fetch(data)(0))[0].images)

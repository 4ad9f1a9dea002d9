"""What updates consume: the same global batch at any number of processes, each image once an epoch."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_data
from torch import Tensor

from sagan.data.dataset import PreparedData
from sagan.training.batches import Batches
from sagan.training.graphs import tensors_of

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


def test_on_cpus_the_training_thread_computes(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second team of OpenMP threads, of the thread that works ahead, would compete for the cores."""
    threads: list[str] = []
    monkeypatch.setattr(Batches, "reals", lambda *_: threads.append(threading.current_thread().name) or [])
    with ThreadPoolExecutor(1) as pool:
        receive = pool.submit(batches().ahead(data, d_steps=1), 0).result()
    receive()
    assert threads == [threading.current_thread().name]


def test_inputs_of_a_step(data: PreparedData) -> None:
    """With the last of three discriminator updates come the latents of the generator."""
    mine = batches()
    prepare, fetch = mine.ahead(data, d_steps=3), mine.fetch(data)
    for update in range(4):
        found = prepare(update)()
        assert same(found.reals, mine.reals(update, fetch(update)))
        assert same(found.latents, mine.latents("discriminator", update))
        assert len(found.generator) == (update == 2)
        assert update != 2 or same(found.generator, mine.latents("generator", 0))


def same(found: list, expected: list) -> bool:
    return all(map(torch.equal, tensors_of(found), tensors_of(expected)))


class Cuda:
    """A stand-in for the streams and events of a CUDA device whose memory is the host's. `done`: what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple] = []
        self.training = self.now = Stream(self, "training")
        self.pinned: list[Tensor] = []
        for name, stand_in in {
            "Stream": lambda device: Stream(self, "side"),
            "stream": self.on,
            "current_stream": lambda device: self.training,
            "Event": lambda blocking: Event(self, "begun"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(Tensor, "pin_memory", lambda x: self.pin(x))
        monkeypatch.setattr(Tensor, "to", lambda x, device, non_blocking=False: self.copy(x, device, non_blocking))
        monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: self.done.append(("keep", x, stream.name)))

    @contextmanager
    def on(self, stream: "Stream") -> Iterator[None]:
        self.now, before = stream, self.now
        yield
        self.now = before

    def pin(self, x: Tensor) -> Tensor:
        self.pinned.append(x.clone())
        return self.pinned[-1]

    def copy(self, x: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert device.type == "cuda"
        waits = not (non_blocking and any(x is pinned for pinned in self.pinned))
        self.done.append(("copy", self.now.name, waits))
        return x.clone()


class Event:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def synchronize(self) -> None:
        self.cuda.done.append(("synchronize", self.name))


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name, self.device = cuda, name, torch.device("cuda")

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.cuda, "ready")
        self.cuda.done.append(("record", event.name, self.name))
        return event

    def wait_event(self, event: Event) -> None:
        self.cuda.done.append(("wait", event.name, self.name))


def test_on_cuda_another_stream_copies_ahead(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pinned memory, which the device does not reuse too early, and never far ahead of the device."""
    expected = batches(accumulation=2).ahead(data, d_steps=1)(0)()
    cuda = Cuda(monkeypatch)
    prepare = batches(accumulation=2, device=torch.device("cuda")).ahead(data, d_steps=1)
    receive = prepare(0)
    *copies, ready = cuda.done
    assert copies == [("copy", "side", False)] * (5 + 5 + 4)  # reals, latents of the discriminator, of the generator
    assert ready == ("record", "ready", "side")
    cuda.done.clear()
    found = receive()
    assert cuda.done[0] == ("wait", "ready", "training")
    assert cuda.done[-1] == ("record", "begun", "training")
    kept = [entry[1] for entry in cuda.done[1:-1] if entry[0] == "keep" and entry[2] == "training"]
    for name in ("reals", "latents", "generator"):
        assert same(getattr(found, name), getattr(expected, name))
        assert all(any(x is y for y in kept) for x in tensors_of(getattr(found, name)))
    cuda.done.clear()
    prepare(1)
    assert cuda.done[0] == ("synchronize", "begun")

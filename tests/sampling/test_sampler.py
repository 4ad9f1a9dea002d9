"""Latents and images depend on their seed and label alone."""

import threading
from collections.abc import Iterator

import pytest
import torch
from small_generator import small_generator
from torch import Tensor

from sagan.models.generator import Generator
from sagan.sampling.sampler import BATCH, class_path, default_labels, generate, latents, pick_device, slerp
from sagan.utils.errors import UserError


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class LastBits(torch.nn.Module):
    """The lowest 8 bits of every value of a generator's images: differences that uint8 would round away."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        bits = self.generator(z, labels).contiguous().view(torch.int32) & 255
        return (bits.float() - 127.5) / 127.5


def test_a_latent_depends_on_its_seed_alone():
    many = latents(range(10), 128)
    torch.manual_seed(5)
    assert torch.equal(latents([7, 2], 128), many[[7, 2]])
    assert latents(range(0), 128).shape == (0, 128)
    assert len(many.unique(dim=0)) == 10


def test_labels_are_seeds_modulo_classes():
    labels = default_labels([0, 5, 12, 3], 5)
    assert labels is not None
    assert labels.tolist() == [0, 0, 2, 3]
    assert default_labels([0, 5], 0) is None


def test_latents_are_normal():
    z = latents(range(4000), 100)
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.01
    assert abs(z.pow(4).mean() - 3) < 0.05
    assert ((z.abs() > 3).double().mean() / 0.0027 - 1).abs() < 0.1


@pytest.mark.parametrize("bound", [0.05, 0.7, 2.0])
def test_quantiles_with_truncation_are_those_of_the_truncated_normal(bound: float):
    z = latents(range(2000), 100, bound).double()
    assert z.abs().max() <= bound * (1 + 1e-6)
    inside = torch.special.erf(torch.tensor(bound) / 2**0.5).double()
    for quantile in (0.02, 0.25, 0.5, 0.75, 0.98):
        share = (z < torch.special.ndtri((1 - inside) / 2 + quantile * inside)).double().mean()
        assert abs(share - quantile) < 0.004
    assert ((z > 0) == (latents(range(2000), 100) > 0)).all()
    assert torch.equal(latents(range(20), 64, 30.0), latents(range(20), 64))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("settings", "num_classes", "channels"), [
    ((), 4, 8), (("generator.attention={8: self_attention, 32: self_attention}",), 0, 5),
    (("data.resolution=64", "generator.class_norm=linear"), 3, 6),
    (("generator.class_norm=shared", "generator.hierarchical=true"), 3, 6),
])  # fmt: skip
def test_images_depend_neither_on_the_batch_nor_on_threads_nor_on_the_order(
    settings: tuple[str, ...], num_classes: int, channels: int, memory_format: torch.memory_format
):
    generator = small_generator(*settings, num_classes=num_classes, channels=channels)
    generator.memory_format = memory_format
    seeds = range(3, 18)
    z, labels = latents(seeds, 128), default_labels(seeds, num_classes)

    def bits(threads: int, batch: int, order: Tensor) -> Tensor:
        torch.set_num_threads(threads)
        return torch.cat(
            [*generate(LastBits(generator), z[order], labels if labels is None else labels[order], batch=batch)]
        )

    order = torch.arange(len(seeds))
    expected = bits(1, BATCH, order)
    assert expected.float().std() > 50
    for threads, batch in ((1, 1), (1, 7), (2, 1), (2, 7), (3, BATCH)):
        assert torch.equal(bits(threads, batch, order), expected), (threads, batch)
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(0))
    assert torch.equal(bits(3, 5, order), expected[order])


def test_without_padding_the_last_bits_differ():
    """If this fails, padding has become unnecessary, or LastBits sees nothing."""
    generator = LastBits(small_generator())
    z, labels = latents(range(BATCH), 128), torch.zeros(BATCH, dtype=torch.long)
    torch.set_num_threads(1)
    with torch.no_grad():
        assert not torch.equal(generator(z, labels)[:1], generator(z[:1], labels[:1]))


def test_a_stopped_generation_leaves_threads_and_random_state_as_before():
    torch.set_num_threads(3)
    generator, state = small_generator(), torch.get_rng_state()
    running = threading.active_count()
    images = generate(generator, latents(range(40), 128), default_labels(range(40), 4))
    next(images)
    assert torch.get_num_threads() == 3
    assert threading.active_count() > running
    images.close()  # type: ignore[attr-defined]
    assert threading.active_count() == running
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))  # a thread has its own number
    later.start()
    later.join()
    assert seen == [torch.get_num_threads()] == [3]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ValueError, match="takes no labels"):
        list(generate(small_generator(num_classes=0), latents(range(30), 128), torch.zeros(30).long()))


def test_a_missing_device_is_refused():
    assert pick_device("cpu") == torch.device("cpu")
    for name, available in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not available:
            with pytest.raises(UserError, match=f"--device {name}"):
                pick_device(name)


def test_slerp_turns_by_equal_angles():
    start, end = latents([1, 2], 128)
    path = slerp(start, end, 9)
    assert torch.equal(path[[0, -1]], torch.stack([start, end]))
    start, end = start / start.norm(), end / end.norm()
    path = slerp(start, end, 9)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(9))
    angles = torch.acos((path[1:] * path[:-1]).sum(1))
    torch.testing.assert_close(angles, torch.acos(start @ end).expand(8) / 8, atol=1e-4, rtol=0)
    assert torch.equal(slerp(start, start, 3), start.expand(3, -1))


def test_class_path_is_linear():
    path = class_path(2, 0, 4, 5)
    assert path[:, 2].tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert path[:, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert path.sum(1).tolist() == [1] * 5

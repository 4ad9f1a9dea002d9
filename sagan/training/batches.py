"""Random inputs and data of every update, as functions of the seed and the update's number.

They are drawn for the whole global batch and then sliced, so results do not depend on the number of processes, and a
run resumes exactly with no state but its step. Each rollback changes the seed, hence all draws and the order of data.
A thread computes them ahead of training and, on CUDA, sends them to the device, so that training never waits for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagan.data.dataset import PreparedData, indices
from sagan.training.augment import CONSISTENCY_DRAWS, draw_augmentation, flip
from sagan.training.graphs import tensors_of
from sagan.training.step import LatentBatch, RealBatch
from sagan.utils.random import key, torch_generator

Raw = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """What a discriminator update consumes: micro-batches of reals and latents. With the last update of each step, also
    `generator`, the latents of the generator's update, else []."""

    reals: list[RealBatch]
    latents: list[LatentBatch]
    generator: list[LatentBatch]


Receive = Callable[[], Inputs]


@dataclass(frozen=True)
class Batches:
    """Random inputs and data for process `rank` of `world`, in micro-batches on a device."""

    seed: int
    batch_size: int
    accumulation: int
    rank: int
    world: int
    device: torch.device
    z_dim: int
    num_classes: int
    policy: Sequence[str]
    flips: bool
    channels_last: bool
    rollbacks: int = 0
    transforms: bool = False  # whether to draw the transforms of consistency regularization
    noise: bool = False  # whether to draw its noise on z

    def ahead(self, data: PreparedData, d_steps: int) -> Callable[[int], Receive]:
        """A function, for a thread that works ahead, from the number of a discriminator update to its inputs.

        They are returned by a function that the training thread calls.
        """
        fetch, side = self.fetch(data), _SideStream(self.device) if self.device.type == "cuda" else None

        def prepare(update: int) -> Receive:
            raw = fetch(update)

            def compute() -> Inputs:
                generator = self.latents("generator", update // d_steps) if (update + 1) % d_steps == 0 else []
                return Inputs(self.reals(update, raw), self.latents("discriminator", update), generator)

            if side is not None:
                return side.send(compute)
            if self.device.type in ("cpu", "mps"):  # a second team of OpenMP threads slows both; MPS takes one thread
                return compute
            inputs = compute()
            return lambda: inputs

        return prepare

    def fetch(self, data: PreparedData) -> Callable[[int], Raw]:
        """A function from the number of a discriminator update to this process's images (b, R, R, C), labels (b,)."""

        def read(update: int) -> Raw:
            order = indices(self._seed, len(data), update * self.batch_size, self.batch_size)
            return data.gather(order[self._mine])

        return read

    def reals(self, update: int, raw: Raw) -> list[RealBatch]:
        """Micro-batches of reals for a discriminator update, from the arrays that `fetch` read."""
        rng = torch_generator(self._seed, "reals", update)
        flips = torch.rand(self.batch_size, generator=rng) < 0.5
        augmentation = draw_augmentation(self.policy, self.batch_size, rng)
        images = self._send(torch.from_numpy(raw[0]))
        images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # (b, C, R, R), channels last in memory
        if not self.channels_last:
            images = images.contiguous()
        if self.flips:
            images = flip(images, self._send(flips[self._mine]))
        labels = self._send(torch.from_numpy(raw[1])) if self.num_classes else None
        split = self._split(images, labels, self._send(augmentation[self._mine]), self._transform("reals", update))
        return [RealBatch(*parts) for parts in split]

    def latents(self, player: str, update: int) -> list[LatentBatch]:
        """Micro-batches of latents, labels and augmentation for an update of `player`, generator or discriminator."""
        rng = torch_generator(self._seed, f"{player} draws", update)
        z = torch.randn(self.batch_size, self.z_dim, generator=rng)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=rng) if self.num_classes else None
        augmentation = draw_augmentation(self.policy, self.batch_size, rng)
        mine = (None if x is None else self._send(x[self._mine]) for x in (z, labels, augmentation))
        transform = self._transform("fakes", update) if player == "discriminator" else None
        noise = None
        if self.noise:
            rng = torch_generator(self._seed, f"{player} noise", update)
            noise = self._send(torch.randn(self.batch_size, self.z_dim, generator=rng)[self._mine])
        return [LatentBatch(*parts) for parts in self._split(*mine, transform, noise)]

    def _transform(self, images: str, update: int) -> Tensor | None:
        """Draws of the consistency regularization for this process, from a separate stream."""
        if not self.transforms:
            return None
        rng = torch_generator(self._seed, f"consistency {images}", update)
        return self._send(torch.rand(self.batch_size, CONSISTENCY_DRAWS, generator=rng)[self._mine])

    def _send(self, x: Tensor) -> Tensor:
        """x on the device. On CUDA the host does not wait: it copies from pinned memory."""
        if self.device.type == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)

    @property
    def _seed(self) -> int:
        return key(self.seed, "rollback", self.rollbacks) if self.rollbacks else self.seed

    @property
    def _mine(self) -> slice:
        share = self.batch_size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def _split(self, *tensors: Tensor | None) -> zip:
        """Chunks of every tensor, micro-batch by micro-batch."""
        none = [None] * self.accumulation
        return zip(*(none if x is None else x.chunk(self.accumulation) for x in tensors), strict=True)


class _SideStream:
    """A CUDA stream on which one thread sends inputs to the device while another one trains there."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.begun: Any = None  # recorded before the newest update that has its inputs

    def send(self, compute: Callable[[], Inputs]) -> Receive:
        """Compute inputs on this stream. The training thread receives them on its own stream."""
        if self.begun is not None:
            self.begun.synchronize()  # else a host far ahead of the device would fill its memory with inputs
        with torch.cuda.stream(self.stream):
            inputs = compute()
            ready = self.stream.record_event()

        def receive() -> Inputs:
            training = torch.cuda.current_stream(self.stream.device)
            training.wait_event(ready)
            for tensor in tensors_of([*inputs.reals, *inputs.latents, *inputs.generator]):
                tensor.record_stream(training)  # no reuse of its memory before training is done with it
            self.begun = training.record_event(torch.cuda.Event(blocking=True))
            return inputs

        return receive

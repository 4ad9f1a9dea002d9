"""Generate images from seeds. Each image depends on its seed and label alone, not on the batch or the processes.

Latents and labels are derived from the seed, never from its position. Every forward has exactly BATCH images, padded
with zeros, because kernels are chosen by shape. On the CPU, one thread computes a whole batch, because a matrix product
split over threads is reduced in a different order.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sagan.config.options import check_truncation
from sagan.models.generator import Generator
from sagan.models.inference import fuse_for_inference
from sagan.utils.errors import UserError
from sagan.utils.images import to_uint8
from sagan.utils.random import key

BATCH = 8


def latents(seeds: Sequence[int], z_dim: int, truncation: float | None = None) -> Tensor:
    """Standard normal latents (N, z_dim), float32 on the CPU. Row i depends on seeds[i] alone.

    With `truncation` t, samples come from the normal distribution truncated to [-t, t], by inverting its cumulative
    distribution function. Values are monotonic in t, so the images of a seed stay similar. UserError unless t > 0.
    """
    check_truncation(truncation)
    bound = torch.tensor(torch.inf if truncation is None else truncation, dtype=torch.float64)
    low, high = torch.special.ndtr(-bound), torch.special.ndtr(bound)
    rows = torch.empty(len(seeds), z_dim)
    for row, seed in zip(rows, seeds, strict=True):
        rng = torch.Generator().manual_seed(key(seed, "z"))
        uniform = torch.rand(z_dim, generator=rng, dtype=torch.float64).clamp_min(2**-54)  # in the open interval (0, 1)
        row.copy_(torch.special.ndtri(torch.lerp(low, high, uniform)).clamp(-bound, bound))
    return rows


def default_labels(seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Label of each seed, seed mod num_classes, (N,). None without classes."""
    return torch.tensor([seed % num_classes for seed in seeds]) if num_classes else None


def generate(
    generator: Callable[[Tensor, Tensor | None], Tensor],
    z: Tensor,
    labels: Tensor | None,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
    keep: bool = False,
) -> Iterator[Tensor]:
    """Generate images from z (N, z_dim) and labels (N,) or class weights (N, K), in order.

    Yields uint8 (b, H, W, 3) on the CPU, b ≤ batch ≤ BATCH. `generator` is on `device` in eval mode; a Generator is
    fused for inference. With `keep`, images stay on the device, so that a GPU does not wait for the host.

    Images are bit-for-bit identical for every `batch` and every number of threads and processes, on CPUs of one kind
    and on GPUs of one kind with the same software. Images of a GPU differ from those of a CPU.
    """
    assert 1 <= batch <= BATCH, batch
    device = torch.device(device)
    network = fuse_for_inference(generator) if isinstance(generator, Generator) else generator
    deterministic = partial(torch.backends.cudnn.flags, enabled=True, benchmark=False, deterministic=True)

    def pad(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(BATCH - len(rows), *rows.shape[1:])]).to(device)

    @torch.no_grad()
    def forward(start: int) -> Tensor:
        rows = slice(start, min(start + batch, len(z)))
        with deterministic() if device.type == "cuda" else nullcontext():
            images = network(pad(z[rows]), None if labels is None else pad(labels[rows]))  # (BATCH, 3, H, W)
        images = to_uint8(images[: rows.stop - start])
        return images if keep else images.cpu()

    starts = range(0, len(z), batch)
    return _in_threads(forward, starts) if device.type == "cpu" else map(forward, starts)


def _in_threads(forward: Callable[[int], Tensor], starts: Sequence[int]) -> Iterator[Tensor]:
    """forward(start) for every start, in order: one thread per call, as many calls at a time as torch has threads."""
    threads = torch.get_num_threads()
    pending: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for start in starts:
            pending.append(pool.submit(forward, start))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def processes() -> tuple[int, int]:
    """(rank, number of processes) as set by torchrun or accelerate; (0, 1) without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(name: str) -> torch.device:
    """The device of this process for `auto`, `cpu`, `cuda` or `mps`. UserError if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if name not in available:
        raise UserError(f"--device {name}: no such device; known: auto, {', '.join(available)}")
    if not available[name]:
        raise UserError(f"--device {name}: not available here; --device cpu always is")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def slerp(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """Spherical interpolation of two latents (z_dim,) -> (frames, z_dim). Shoemake 1985; White, arXiv:1609.04468.

    Goes from `start` to `end`, both included, in equal angles. Linear if the two are parallel.
    """
    t = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]
    a, b = start.double(), end.double()
    angle = torch.acos(F.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a, b, t).float()
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).float()


def class_path(start: int, end: int, num_classes: int, frames: int) -> Tensor:
    """Linear interpolation of two one-hot classes -> (frames, num_classes). Rows sum to 1."""
    classes = F.one_hot(torch.tensor([start, end]), num_classes).double()
    return torch.lerp(classes[0], classes[1], torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]).float()

"""Images from seeds: image k depends on seed k and its label alone, not on the batch or the number of processes.

Three rules ensure this. Latent and label come from the seed, never from its position in a list. Every forward has
exactly BATCH images, padded with zeros, because kernels are chosen by shape. On the CPU a batch is computed by one
thread, because a product split over two threads is summed in a different order; threads take whole batches instead.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

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
    """Standard normal latents (N, z_dim), float32 on the CPU; row i is drawn from seeds[i] alone.

    `truncation` t draws from the normal truncated to [-t, t] (not clipped to it) by inverting its distribution
    function; each number is monotonic in t, so that images of a seed stay similar. UserError when t is not positive.
    """
    check_truncation(truncation)
    bound = torch.tensor(torch.inf if truncation is None else truncation, dtype=torch.float64)
    low, high = torch.special.ndtr(-bound), torch.special.ndtr(bound)
    rows = [torch.special.ndtri(torch.lerp(low, high, _uniforms(seed, z_dim))) for seed in seeds]
    return torch.stack(rows).clamp(-bound, bound).float() if rows else torch.empty(0, z_dim)


def _uniforms(seed: int, count: int) -> Tensor:
    """Float64 (count,) in the open interval (0, 1)."""
    generator = torch.Generator().manual_seed(key(seed, "z"))
    return torch.rand(count, generator=generator, dtype=torch.float64).clamp_min(2**-54)


def default_labels(seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Label of each seed, seed mod num_classes, (N,); None without classes."""
    return torch.tensor([seed % num_classes for seed in seeds]) if num_classes else None


def generate(
    generator: Callable[[Tensor, Tensor | None], Tensor],
    z: Tensor,
    labels: Tensor | None,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
    keep: bool = False,
) -> Iterator[Tensor]:
    """z (N, z_dim), labels (N,) or class weights (N, K) -> uint8 (b, H, W, 3) on the CPU, in order; b ≤ batch ≤ BATCH.

    `generator` is on `device` in eval mode; a Generator is fused for inference. `keep` leaves the images there, so that
    a GPU does not wait for the host.

    Equal bytes for every `batch`, number of threads and number of processes: on CPUs of one kind, and on GPUs of one
    kind with the same software; a GPU's images differ from a CPU's.
    """
    assert 1 <= batch <= BATCH, batch
    device = torch.device(device)
    draw = fuse_for_inference(generator) if isinstance(generator, Generator) else generator

    def forward(start: int) -> Tensor:
        rows = slice(start, start + batch)
        images = _forward(draw, z[rows], None if labels is None else labels[rows], device)
        return images if keep else images.cpu()

    starts = range(0, len(z), batch)
    return _in_threads(forward, starts) if device.type == "cpu" else map(forward, starts)


@torch.no_grad()
def _forward(
    generator: Callable[[Tensor, Tensor | None], Tensor], z: Tensor, labels: Tensor | None, device: torch.device
) -> Tensor:
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with deterministic if device.type == "cuda" else nullcontext():
        images = generator(_pad(z, device), None if labels is None else _pad(labels, device))  # (BATCH, 3, H, W)
    return to_uint8(images[: len(z)])


def _pad(rows: Tensor, device: torch.device) -> Tensor:
    padded = rows.new_zeros(BATCH, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded.to(device)


def _in_threads(forward: Callable[[int], Tensor], starts: Sequence[int]) -> Iterator[Tensor]:
    """forward(start) for every start, in order; each in one thread, as many at a time as torch would use for one."""
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
    """The device `auto`, `cpu`, `cuda` or `mps` of this process; UserError if it is not available."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    if name not in there:
        raise UserError(f"--device {name}: known: auto, {', '.join(there)}")
    if not there[name]:
        raise UserError(f"--device {name}: not available here; --device cpu always is")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def slerp(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """Spherical interpolation of two latents (z_dim,) -> (frames, z_dim). Shoemake 1985; White, arXiv:1609.04468.

    From `start` to `end`, both included, in equal angles; a straight line where the two are parallel.
    """
    t = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]
    a, b = start.double(), end.double()
    angle = torch.acos(F.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a, b, t).float()
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).float()


def class_path(start: int, end: int, num_classes: int, frames: int) -> Tensor:
    """Class weights from all on `start` to all on `end`, in equal steps: (frames, num_classes), rows sum to 1."""
    classes = F.one_hot(torch.tensor([start, end]), num_classes).double()
    return torch.lerp(classes[0], classes[1], torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]).float()

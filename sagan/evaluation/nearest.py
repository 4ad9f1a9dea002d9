"""The real images nearest to each sample: has a generator learnt its training set by heart?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sagan.errors import UserError
from sagan.images import BLACK, WHITE, enlarge

CHUNK = 1 << 22  # numbers of one block of differences
SMALLEST, MARGIN, GAP, PITCH, CAPTION, HEADING, TEXT = 64, 12, 20, 6, 18, 22, 12  # pixels


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each of S samples its k nearest images, the nearest first; of two equally near ones the lower index."""

    indices: np.ndarray  # int64 (S, k): places in the order in which the images came
    distances: np.ndarray  # float32 (S, k)


@torch.no_grad()
def nearest(samples: Tensor, batches: Iterable[Tensor], k: int, squared: bool = True) -> Nearest:
    """Compare embeddings (S, E) with those of all images of `batches`, (B, E) each: exact, seen once.

    `squared`: squared Euclidean distances, which on embeddings of `Perceptual` are LPIPS; False: Euclidean ones.
    Equal embeddings are exactly 0 apart. Memory: 8·S·E bytes, and a batch. UserError for fewer than k images.
    """
    assert k > 0
    points = _float64(samples)  # (S, E)
    distances = torch.empty(len(points), 0, device=points.device)
    indices = torch.empty(len(points), 0, dtype=torch.long, device=points.device)
    seen = 0
    for batch in batches:
        kept = distances[:, -1] if distances.shape[1] == k else None
        found = _near_distances(points, _float64(batch.to(samples.device)), k, kept)  # (S, B)
        places = torch.arange(seen, seen + len(batch), device=points.device).expand_as(found)
        distances, order = torch.cat([distances, found], 1).sort(dim=1, stable=True)  # equal ones stay in turn
        distances, indices = distances[:, :k], torch.cat([indices, places], 1).gather(1, order[:, :k])
        seen += len(batch)
    if seen < k:
        raise UserError(f"nearest: {k} nearest images were asked for, there are only {seen} to compare with")
    return Nearest(indices.cpu().numpy(), (distances if squared else distances.sqrt()).cpu().numpy())


def _near_distances(points: Tensor, batch: Tensor, k: int, kept: Tensor | None) -> Tensor:
    """Squared distances float32 (S, B); infinite where there are k nearer ones for certain, here or in `kept` (S,).

    ‖a‖² + ‖b‖² − 2ab tells which pairs may be near, with a bound on its rounding; they are computed from differences.
    """
    ours, theirs = points.square().sum(1)[:, None], batch.square().sum(1)  # (S, 1), (B,)
    assert ours.isfinite().all()
    assert theirs.isfinite().all()
    rounding = 4 * points.shape[1] * torch.finfo(torch.float64).eps * (ours + theirs)  # (S, B)
    rough = ours + theirs - 2 * (points @ batch.T)
    limit = torch.full_like(ours, torch.inf) if kept is None else kept[:, None].double()
    if len(batch) >= k:
        limit = limit.minimum((rough + rounding).kthvalue(k, dim=1, keepdim=True).values)  # (S, 1)
    limit = limit * (1 + 2 * torch.finfo(torch.float32).eps)  # equal in float32 is equal
    sample, image = (rough - rounding <= limit).nonzero(as_tuple=True)
    found = torch.full(rough.shape, torch.inf, device=points.device)
    step = max(1, CHUNK // points.shape[1])
    for s, i in zip(sample.split(step), image.split(step), strict=True):
        found[s, i] = (points[s] - batch[i]).square().sum(1).float()
    return found


def _float64(embeddings: Tensor) -> Tensor:
    """On the CPU where the device, mps, has no float64."""
    return (embeddings.cpu() if embeddings.device.type == "mps" else embeddings).double()


def nearest_sheet(samples: np.ndarray, neighbours: np.ndarray, distances: np.ndarray, title: str) -> np.ndarray:
    """One row a sample: it, and its nearest images with the distances under them, as uint8 (H', W', 3).

    Samples (S, H, W, 3) and neighbours (S, k, H, W, 3) are uint8, distances (S, k). Small images are enlarged,
    by a whole factor, to 64 pixels or more.
    """
    scale = max(1, -(-SMALLEST // min(samples.shape[1:3])))
    (height, width), k = (scale * side for side in samples.shape[1:3]), neighbours.shape[1]
    lefts = [MARGIN, *(MARGIN + width + GAP + i * (width + PITCH) for i in range(k))]
    top, pitch = MARGIN + 2 * HEADING, height + CAPTION + PITCH
    font, larger = ImageFont.load_default(size=TEXT), ImageFont.load_default(size=TEXT + 3)
    right = max(lefts[-1] + width, MARGIN + int(larger.getlength(title)) + 1)
    canvas = Image.new("RGB", (right + MARGIN, top + len(samples) * pitch - PITCH + MARGIN), WHITE)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, fill=BLACK, font=larger)
    for left, heading in zip(lefts, ("sample", "nearest first" if k > 1 else "nearest"), strict=False):
        draw.text((left, MARGIN + HEADING), heading, fill=BLACK, font=font)
    for row, (sample, near) in enumerate(zip(samples, neighbours, strict=True)):
        y = top + row * pitch
        for left, image in zip(lefts, enlarge(np.stack([sample, *near]), scale), strict=True):
            canvas.paste(Image.fromarray(image), (left, y))
        for left, distance in zip(lefts[1:], distances[row], strict=True):
            text = f"{distance:.3f}" if distance < 10 else f"{distance:.1f}"
            draw.text((left + width // 2, y + height + 2), text, fill=BLACK, font=font, anchor="mt")
    return np.asarray(canvas)

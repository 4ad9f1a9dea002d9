"""What a discriminator attends to while it judges images: real ones, and the generator's."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sagan.attention import AttentionMap, record_attention
from sagan.discriminator import Discriminator
from sagan.inspection.maps import Maps, Recording, recording_of
from sagan.spectral_norm import hold_state

BATCH = 8


@torch.no_grad()
def judged_attention(
    discriminator: Discriminator,
    images: np.ndarray,
    labels: Tensor | None,
    numbers: Sequence[int],
    points: Tensor | Callable[[np.ndarray], Tensor],
    class_names: tuple[str, ...] = (),
) -> Recording:
    """Record the attention of `points` while images, uint8 (B, R, R, 3) with labels (B,), are judged.

    `numbers` (B,): what the images are called, seeds or places in the data; `points`: as for `attention_of`. The
    discriminator stays as it is: its state is held.
    """
    device = next(discriminator.parameters()).device
    chosen = points(images) if callable(points) else points.cpu().double()
    chosen = chosen.expand(len(images), -1, -1)
    parts: list[Maps] = []
    with hold_state(discriminator):
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            x = torch.from_numpy(images[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (b, 3, R, R)
            with record_attention(discriminator, chosen[rows]) as maps:
                discriminator(x, None if labels is None else labels[rows].to(device))
            parts.append({name: AttentionMap(m.kind, m.weights.float().cpu()) for name, m in maps.items()})
    return recording_of(discriminator, images, numbers, labels, chosen, parts, class_names)

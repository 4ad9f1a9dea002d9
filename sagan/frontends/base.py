"""What every front-end is: images to a judgement, by the trunk and the head it is given and others of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from sagan.attention.base import Listener, Observable


class Judgement(NamedTuple):
    """What a discriminator says: logits (B,), or (B, S), one column a scale; named terms () to be added to its loss."""

    logits: Tensor
    penalties: dict[str, Tensor]


class FrontEnd(Observable):
    """`trunk`: images (B, 3, R, R) -> features (B, C, h, w); `head`: features, labels (B,) -> logits (B,).

    Both belong to the discriminator and are handed over at the call; what else a front-end needs is built elsewhere
    and belongs to it. It has no parameters besides. `resolution`: size of its first map.
    """

    resolution: tuple[int, int]

    def forward(
        self, trunk: nn.Module, head: nn.Module, images: Tensor, labels: Tensor | None, reals: Tensor | None
    ) -> Judgement:
        """`reals` (B,): which images are real; None: nobody says, as in the generator's update."""
        raise NotImplementedError


@contextmanager
def heard_as_heads(network: nn.Module, pieces: int) -> Iterator[None]:
    """Inside, `network` sees `pieces` parts of every image as a batch (B·pieces, …); who listens to it gets maps of
    images, (B, pieces·heads, k, H', W'): first those of the first part. Points are fractions of a part."""
    ears: list[tuple[Observable, Listener]] = []
    for module in network.modules():
        if isinstance(module, Observable) and module.listener is not None:
            points = module.listener.points
            if points is not None and points.ndim == 3:
                points = points.repeat_interleave(pieces, 0)
            ears.append((module, module.listener))
            module.listener = Listener(points)
    try:
        yield
    finally:
        for module, listener in ears:
            assert module.listener is not None
            for tap, found in module.listener.maps.items():
                weights = found.weights.unflatten(0, (-1, pieces)).flatten(1, 2)
                listener.maps[tap] = replace(found, weights=weights)
            module.listener = listener

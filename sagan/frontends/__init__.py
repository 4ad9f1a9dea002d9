"""Front-ends: how a discriminator looks at an image, other than once at the whole. By name."""

from sagan.frontends.base import FrontEnd, Judgement
from sagan.frontends.coarse_to_fine import CoarseToFine
from sagan.frontends.zoom import Zoom

FRONTENDS: dict[str, type[FrontEnd]] = {
    "coarse_to_fine": CoarseToFine,
    "zoom": Zoom,
}

__all__ = ["FRONTENDS", "CoarseToFine", "FrontEnd", "Judgement", "Zoom"]

"""The attention of a network on a few images, as `sagan.attend` returns it."""

import html
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sagan.inspection import health, record
from sagan.inspection.figure import TILE, attention_figure
from sagan.inspection.page import attention_page, pack_layers
from sagan.inspection.record import Recording
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.utils.errors import UserError, suggestion
from sagan.utils.images import as_png, save_png
from sagan.utils.io import atomic_file, make_folder


class Page(str):
    """The HTML of an attention page. In a notebook it shows itself in the cell."""

    def save(self, path: Path | str) -> None:
        """Write the page as a file that needs nothing else."""
        with atomic_file(path) as temporary:
            temporary.write_text(self, encoding="utf-8")

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 720px; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self)}"></iframe>'


@dataclass(frozen=True, eq=False)
class Attention:
    """B images and what k query points of each attend to. In a notebook it shows itself as the figure.

    Attributes:
        recording: images, points and maps as tensors on the CPU.
        network: the network that attends.
        z: float32 (B, z_dim), the latents of the images; None for images that were not generated.
        name: of its files; source: of the network, for the title of the page.

    Examples:
        >>> attention = sagan.attend("runs/shapes", seeds=2, points=3)
        >>> {layer: maps.shape for layer, maps in attention.maps.items()}
        {'attention.8x8': (2, 1, 3, 4, 4)}
        >>> attention.health["attention.8x8"]["gamma"] == attention.gamma["attention.8x8"]
        True
        >>> [path.name for path in attention.save("attention")]
        ['attention.png', 'attention.npz']
    """

    recording: Recording
    network: Generator | Discriminator
    z: Tensor | None = None
    labels: Tensor | None = None
    name: str = "attention"
    source: str = "a generator"

    @property
    def images(self) -> np.ndarray:
        """uint8 (B, R, R, 3)."""
        return self.recording.images

    @property
    def points(self) -> np.ndarray:
        """float64 (B, k, 2): fractions of height and width."""
        return self.recording.points.numpy()

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Of each layer, float32 (B, heads, k, H, W): the weights of the H×W keys; k is 1 where all points share one.

        Softmax rows sum to 1. `kinds` names other maps, such as gates.
        """
        return {name: found.weights.numpy() for name, found in self.recording.maps.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each map, such as "softmax row", "channel gate" or "boxes"."""
        return {name: found.kind for name, found in self.recording.maps.items()}

    @property
    def gamma(self) -> dict[str, float]:
        """The attention gain of each layer that has one; 0: the layer is unused."""
        return self.recording.gamma

    @cached_property
    def health(self) -> dict[str, dict[str, float]]:
        """Statistics of each layer: gamma, entropy, distance, far mass and variation, each beside uniform attention's.

        Of a generator also `untrained`, the agreement with an untrained one. docs/attend.md defines them.
        """
        numbers = health.attention_health(self.network, self.recording.maps, self.recording.points)
        if isinstance(self.network, Generator) and self.z is not None:
            agreement = health.agreement_with_untrained(self.network, self.recording, self.z, self.labels)
            for layer, value in agreement.items():
                numbers[layer]["untrained"] = value
        return numbers

    def select(self, layers: str | None) -> "Attention":
        """Only the maps that `layers` names, as `--layers` does. UserError for an unknown name."""
        if layers is None:
            return self
        wanted, maps = [name.strip() for name in layers.split(",")], self.recording.maps
        for name in wanted:
            if name not in maps:
                raise UserError(f"--layers {name!r}: no such map; {suggestion(name, maps)}")
        return replace(self, recording=replace(self.recording, maps={name: maps[name] for name in wanted}))

    def figure(self, smooth: bool = False, tile: int = TILE) -> Image.Image:
        """The figure; `smooth` interpolates the cells, `tile` is the least size of an image in pixels."""
        return Image.fromarray(attention_figure(self.recording, smooth, tile))

    def page(self) -> Page:
        """The interactive page, with the maps of all cells. UserError for a discriminator, and if it is too large."""
        if not isinstance(self.network, Generator) or self.z is None:
            raise UserError("page: it shows the generator; attend with network generator")
        layers = pack_layers(self.network, self.z, self.labels, self.recording)
        return Page(attention_page(self.recording, layers, self.health, self.source))

    def __repr__(self) -> str:
        return f"Attention({len(self.images)} images, {self.points.shape[1]} points, layers {', '.join(self.maps)})"

    def save(self, folder: Path | str, smooth: bool = False, tile: int = TILE) -> list[Path]:
        """Write NAME.png and NAME.npz, whose arrays docs/attend.md lists. Returns their paths."""
        figure, arrays = (make_folder(folder) / f"{self.name}.{suffix}" for suffix in ("png", "npz"))
        save_png(figure, attention_figure(self.recording, smooth, tile))
        record.save_npz(arrays, self.recording)
        return [figure, arrays]

    def _repr_png_(self) -> bytes:
        return as_png(self.figure())

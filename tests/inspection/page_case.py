"""Known maps of four images: every way of packing and drawing them, and a hostile class name. A generator with maps."""

import shutil
from dataclasses import dataclass

import numpy as np
import torch

from sagan.attention import AttentionMap
from sagan.config.load import load_config
from sagan.inspection.page import Layer, pack
from sagan.inspection.record import Recording, grid_points
from sagan.models.generator import Generator, build_generator
from sagan.sampling.sampler import default_labels, latents

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>&amp;"
NAMES = ("disc", "ring", HOSTILE)
RESOLUTION = 32
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A layer and its weights (B, heads, N, M); N = 1 if the map is the same for every cell."""

    name: str
    kind: str
    size: tuple[int, int]
    keys: tuple[int, int]
    weights: np.ndarray
    gamma: float | None = 0.5

    def layer(self) -> Layer:
        return Layer(self.name, self.kind, self.keys, [tuple(map(pack, image)) for image in self.weights])

    def at(self, image: int, head: int, cell: tuple[int, int]) -> np.ndarray:
        """The map (H', W') of a query cell."""
        row = cell[0] * self.size[1] + cell[1] if self.weights.shape[2] > 1 else 0
        return self.weights[image, head, row].reshape(self.keys)


def dot_product_rows(n: int, m: int, width: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Softmax rows (n², m²) of queries and keys of `width` that change smoothly over the map, as float32."""

    def smooth() -> np.ndarray:
        """Noise (width, n, n) averaged over 3×3 neighbors."""
        noise = rng.standard_normal((width, n, n))
        return sum(np.roll(noise, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1))

    query, key = smooth(), smooth()
    key = key.reshape(width, m, n // m, m, n // m).max(axis=(2, 4))
    logits = query.reshape(width, -1).T @ key.reshape(width, -1)
    shifted = spread * logits / logits.std()
    weights = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def known_layers(images: int = 4) -> list[Known]:
    rng = np.random.default_rng(0)

    def rows(heads: int, n: int, m: int, width: int, spread: float) -> np.ndarray:
        maps = [dot_product_rows(n, m, width, spread, rng) for _ in range(images * heads)]
        return np.stack(maps).reshape(images, heads, n * n, m * m)

    odd = rng.dirichlet(np.full(9, 0.5), (images, 1, 49)).astype(np.float32)
    gate = rng.random((images, 1, 1, 64), np.float32) * 0.6
    signed = rng.standard_normal((images, 1, 256, 64)).astype(np.float32)
    return [
        Known("attention.16x16", "softmax row", (16, 16), (8, 8), rows(2, 16, 8, 8, 2.0)),
        Known("attention.32x32", "softmax row", (32, 32), (32, 32), rows(1, 32, 32, 32, 1.0)),
        Known("attention.8x8", "softmax row", (8, 8), (8, 8), rows(1, 8, 8, 4, 0.3), None),
        Known("blocks.1.branch", "softmax row", (7, 7), (3, 3), odd),
        Known("blocks.2.branch", "signed weight", (16, 16), (8, 8), signed),
        Known("blocks.3.branch/gate", "spatial gate", (8, 8), (8, 8), gate, None),
    ]


def known_recording(layers: list[Known]) -> Recording:
    count = len(layers[0].weights)
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    return Recording(
        images=images,
        seeds=np.arange(count),
        labels=np.arange(count) % len(NAMES),
        points=grid_points(1).expand(count, -1, -1),
        maps={k.name: AttentionMap(k.kind, torch.empty(count, 1, 1, *k.keys)) for k in layers},
        gamma={k.name: k.gamma for k in layers if k.gamma is not None},
        resolution={k.name: k.size for k in layers},
        class_names=NAMES,
    )


SEEDS = list(range(3, 14))  # more than one batch of 8


def sharp_generator(num_classes: int = 4) -> Generator:
    """Two attention modules whose maps are not uniform, gamma not 0; in training mode with spectral norm."""
    attention = "generator.attention={8: {name: self_attention, pool: false}, 16: self_attention}"
    generator = build_generator(load_config(None, ["generator.channels=4", attention]), num_classes)
    for module, gamma in zip(generator.attention.values(), (0.5, -0.3), strict=True):
        module.gamma.data.fill_(gamma)  # type: ignore[union-attr]
        module.query.register_forward_hook(lambda _module, _inputs, output: 100 * output)  # type: ignore[union-attr]
    return generator


def inputs_of(generator: Generator) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
    return latents(SEEDS, generator.z_dim), default_labels(SEEDS, generator.num_classes), SEEDS

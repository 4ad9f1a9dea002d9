"""What the attention page shows: images, and the maps of all their cells, packed as they are recorded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sagan.attention import KINDS, AttentionMap, record_attention
from sagan.drawing import drawing_form
from sagan.errors import UserError
from sagan.inspection.health import module_gammas, module_of, resolutions
from sagan.inspection.maps import Maps, attention_of
from sagan.inspection.packing import Packed, pack
from sagan.inspection.points import grid_points
from sagan.networks import Generator
from sagan.progress import Progress
from sagan.sampling import BATCH, generate
from sagan.spectral_norm import hold_state

LARGEST_PAGE = 64  # MB
MOST_WEIGHTS = 2**25  # of all maps of an image; a batch of them takes 1 GiB, and packing one as much again
OTHERWISE = "the figure and the arrays, of chosen points, take any map"


@dataclass(frozen=True)
class Layer:
    """The maps of one name, as `record_attention` gives them."""

    name: str
    kind: str
    size: tuple[int, int]  # of the query map
    keys: tuple[int, int]
    gamma: float | None
    maps: tuple[tuple[Packed, ...], ...]  # one of each image and head


@dataclass(frozen=True)
class PageData:
    """B images and the rows of all query cells of every attention module."""

    images: np.ndarray  # (B, H, W, 3) uint8
    seeds: np.ndarray  # (B,) int64
    labels: np.ndarray  # (B,) int64; -1 without classes
    class_names: tuple[str, ...]
    layers: tuple[Layer, ...]


def page_data_of(
    generator: Generator,
    z: Tensor,
    labels: Tensor | None,
    seeds: Sequence[int],
    progress: bool = False,
    largest: float = LARGEST_PAGE,
) -> PageData:
    """Draw images of z (B, z_dim) and labels (B,), and pack the maps of all their cells; the network stays as it is.

    The images are those of `sagan.sampling.generate`, bit for bit. Memory: all rows of one batch. UserError without
    attention modules, for maps that are not finite, and where the page would exceed `largest` MB.
    """
    _check_rows(generator, z, labels, seeds)
    images: list[Tensor] = []
    found: dict[str, tuple[str, tuple[int, int], list[tuple[Packed, ...]]]] = {}  # name -> kind, keys, maps
    training = generator.training
    generator.eval()
    try:
        with hold_state(generator), Progress(len(z), "packing attention maps", quiet=not progress) as shown:
            for drawn, maps in _batches(generator, z, labels):
                images.append(drawn)
                for image in range(len(drawn)):
                    for name, recorded in maps.items():
                        keys = recorded.weights.shape[3], recorded.weights.shape[4]
                        kept = found.setdefault(name, (recorded.kind, keys, []))[2]
                        kept.append(_packed(name, recorded.weights[image].flatten(2).numpy()))
                    _check_size([kept for _, _, kept in found.values()], len(z), largest)
                    shown.advance()
    finally:
        generator.train(training)
    gammas, sizes = module_gammas(generator), resolutions(generator)
    return PageData(
        images=torch.cat(images).numpy(),
        seeds=np.array(seeds, np.int64),
        labels=np.full(len(z), -1) if labels is None else labels.cpu().numpy(),
        class_names=generator.class_names,
        layers=tuple(
            Layer(name, kind, sizes[module_of(name)], keys, gammas.get(name, gammas.get(module_of(name))), tuple(maps))
            for name, (kind, keys, maps) in found.items()
        ),
    )


def shown_on_page(kind: str) -> bool:
    """Whether a kind of map is weights of places: one map for each cell, or one that is the same for every cell."""
    return KINDS[kind].spatial and kind != "sampling grid"


def _batches(generator: Generator, z: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Maps]]:
    """Images (b, H, W, 3) and all rows of their maps, of the very forward that drew them."""
    device = next(generator.parameters()).device
    generator = drawing_form(generator)
    for start in range(0, len(z), BATCH):
        rows = slice(start, start + BATCH)
        recorded: Maps = {}

        def draw(z: Tensor, labels: Tensor | None, recorded: Maps = recorded) -> Tensor:
            with record_attention(generator) as maps:
                images = generator(z, labels)
            recorded.update(maps)
            return images

        images = torch.cat(list(generate(draw, z[rows], None if labels is None else labels[rows], device)))
        yield (
            images,
            {
                name: AttentionMap(m.kind, m.weights[: len(images)].float().cpu())
                for name, m in recorded.items()
                if shown_on_page(m.kind)
            },
        )


def _check_rows(generator: Generator, z: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> None:
    """From one point of one image: are there maps, and are they small enough to be held whole?"""
    first = attention_of(generator, z[:1], None if labels is None else labels[:1], seeds[:1], grid_points(1))
    if not first.maps:
        raise UserError("nothing to point at: the network has no attention module")
    maps = {name: found for name, found in first.maps.items() if shown_on_page(found.kind)}
    if not maps:
        kinds = ", ".join(sorted({found.kind for found in first.maps.values()}))
        raise UserError(f"nothing to point at: no map lies on the image ({kinds}); the figure and the arrays show them")
    each = {
        name: (math.prod(first.resolution[name]) if KINDS[found.kind].per_query else 1) * found.weights.numel()
        for name, found in maps.items()
    }
    if sum(each.values()) > MOST_WEIGHTS:
        name = max(each, key=lambda name: each[name])
        raise UserError(
            f"{name}: all rows of its map are {each[name] / 1e6:.0f} million weights an image, the page takes "
            f"{MOST_WEIGHTS / 1e6:.0f} million; {OTHERWISE}"
        )


def _packed(name: str, heads: np.ndarray) -> tuple[Packed, ...]:
    """The maps of an image, (heads, N, M)."""
    if not np.isfinite(heads).all():
        raise UserError(f"{name}: its weights are not finite, so training has diverged; take an earlier snapshot")
    return tuple(pack(weights) for weights in heads)


def _check_size(layers: list[list[tuple[Packed, ...]]], count: int, largest: float) -> None:
    """What the maps packed so far take as base64."""
    size = sum(len(packed.content) for layer in layers for image in layer for packed in image) * 4 / 3 / 1e6
    if size > largest:
        each = size / len(layers[0])
        fitting = int(largest / each)
        advice = f"choose at most {fitting}, with fewer --seeds or --classes" if fitting else OTHERWISE
        raise UserError(
            f"the maps of {count} images need about {each * count:.2g} MB, a page holds {largest:g}; {advice}"
        )

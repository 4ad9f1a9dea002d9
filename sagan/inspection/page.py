"""The attention page: one HTML file in which the pointer shows what each cell of an image attends to.

It needs no server and no network, and its content security policy allows nothing but its own script and style. Colors
and opacity are those of `sagan.inspection.figure`: weight / max(largest weight of the map, FULL / M).
"""

import base64
import html
import io
import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Template

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sagan.attention import KINDS
from sagan.attention.base import ROW
from sagan.inspection.figure import COLORS, FULL, SIGNS
from sagan.inspection.health import EVEN, describe
from sagan.inspection.record import (
    attention_of,
    gamma_of,
    grid_points,
    inspected,
    module_gammas,
    module_of,
    record_batch,
    resolutions,
)
from sagan.models.generator import Generator
from sagan.sampling.sampler import BATCH
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file
from sagan.utils.progress import Progress
from sagan.utils.random import numpy_generator

BOUND = 1 / 510  # of a row's peak: half a step of a byte
RANK = 128  # largest query width that factors are tried for
SPARE = 16  # directions beyond RANK in the sketch of the matrix
SMALLEST = 1e-38  # weights below are rounding
LARGEST_INTEGER = 2**15 - 1
NEGLIGIBLE = BOUND / 64  # in a logit
TRIES = 6  # step sizes


@dataclass(frozen=True)
class Packed:
    """One map of one image and head."""

    form: str  # "factors" or "bytes"
    signed: bool  # some weights are negative
    shape: tuple[int, int]  # N query cells, M keys
    rank: int  # of factors, else 0
    step: float  # of factors, else 0
    content: bytes  # deflated: N peaks, float32, then A and B (int16) or the bytes (uint8, int8), little-endian
    error: float  # largest |weight - unpacked| of a row in parts of its peak


def pack(weights: np.ndarray) -> Packed:
    """Pack finite weights (N, M)."""
    weights = weights.astype(np.float64)
    signed = bool((weights < 0).any())
    peaks = np.abs(weights).max(axis=1).astype("<f4")
    ratios = weights / np.where(peaks > 0, peaks, 1)[:, None]
    packed = _pack_bytes(ratios, peaks, signed)
    factors = None if signed else _pack_factors(ratios, peaks)
    return packed if factors is None else min(packed, factors, key=lambda form: len(form.content))


def unpack(packed: Packed) -> np.ndarray:
    """The weights (N, M) as the page computes them."""
    content = zlib.decompress(packed.content)
    n, m = packed.shape
    peaks, rest = np.frombuffer(content, "<f4", n), content[4 * n :]
    if packed.form == "factors":
        planes = np.frombuffer(rest, np.uint8).reshape(2, n + m, packed.rank)
        both = (planes[0] | planes[1].astype("<u2") << 8).view("<i2").astype(np.float64)
        return _ratios(both[:n], both[n:], packed.step) * peaks[:, None]
    levels = np.frombuffer(rest, np.uint8).reshape(n, m)
    return (levels.view(np.int8) / 127.5 if packed.signed else levels / 255) * peaks[:, None]


def _pack_bytes(ratios: np.ndarray, peaks: np.ndarray, signed: bool) -> Packed:
    if signed:
        levels = np.rint(127.5 * ratios).clip(-127, 127).astype(np.int8)
        shown = levels / 127.5
    else:
        levels = np.rint(255 * ratios).astype(np.uint8)
        shown = levels / 255
    return Packed(
        form="bytes",
        signed=signed,
        shape=(ratios.shape[0], ratios.shape[1]),
        rank=0,
        step=0.0,
        content=zlib.compress(peaks.tobytes() + levels.tobytes()),
        error=float(np.abs(shown - ratios).max()),
    )


def _pack_factors(ratios: np.ndarray, peaks: np.ndarray) -> Packed | None:
    """None where log weights are of too high a rank, or too large, to keep the bound."""
    if not peaks.all():
        return None
    logits = np.log(np.maximum(ratios, SMALLEST))
    left, right = _balanced_factors(logits - logits.mean(axis=1, keepdims=True))  # (N, r), (M, r)
    if np.abs(_ratios(left, right, 1) - ratios).max() > BOUND / 2:
        return None
    largest = _largest(left, right)
    norms = np.square(left).sum(axis=1).max() + np.square(right).sum(axis=1).max()
    spacing = max(BOUND / np.sqrt(norms + 1e-12), largest / LARGEST_INTEGER)
    for _ in range(TRIES):
        a, b = np.rint(left / spacing), np.rint(right / spacing)
        if _largest(a, b) > LARGEST_INTEGER:
            return None
        used = a.any(axis=0) & b.any(axis=0)
        a, b = a[:, used], b[:, used]
        error = np.abs(_ratios(a, b, spacing**2) - ratios).max()
        if error <= BOUND:
            return _packed_factors(a, b, float(spacing**2), peaks, float(error))
        spacing /= 2**0.5
    return None


def _packed_factors(a: np.ndarray, b: np.ndarray, step: float, peaks: np.ndarray, error: float) -> Packed:
    both = np.concatenate([a, b]).astype("<i2").view("<u2")
    planes = np.stack([both & 255, both >> 8]).astype(np.uint8)  # low bytes, then high bytes: the high ones deflate
    content = zlib.compress(peaks.tobytes() + planes.tobytes(), 9)
    return Packed("factors", False, (len(a), len(b)), a.shape[1], step, content, error)


def _largest(left: np.ndarray, right: np.ndarray) -> float:
    return max(np.abs(left).max(initial=0), np.abs(right).max(initial=0))


def _ratios(left: np.ndarray, right: np.ndarray, step: float) -> np.ndarray:
    """weight / peak (N, M) of factors."""
    logits = left @ right.T
    return np.exp(step * (logits - logits.max(axis=1, keepdims=True)))


def _balanced_factors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, r) and (M, r), r ≤ RANK, whose product is nearest to a matrix: its singular vectors times √singular value.

    A larger matrix is first projected on a random sketch of its range (Halko, Martinsson & Tropp 2011, one power
    iteration): exact to rounding where its rank is at most RANK.
    """
    if min(matrix.shape) <= RANK + SPARE:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        sketch = numpy_generator(0, "attention page").standard_normal((matrix.shape[1], RANK + SPARE))
        basis = np.linalg.qr(matrix @ sketch)[0]
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]  # (N, RANK + SPARE)
        u, s, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    weighty = np.flatnonzero(s * np.abs(u).max(axis=0) * np.abs(v).max(axis=1) > NEGLIGIBLE)[:RANK]
    root = np.sqrt(s[weighty])
    return u[:, weighty] * root, v[weighty].T * root


LARGEST_PAGE = 64  # MB
MOST_WEIGHTS = 2**25  # of all maps of an image: a batch takes 1 GiB, and packing one map up to as much
OTHERWISE = "the figure and the arrays hold the rows of a few points only"


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
    """Generate images of z (B, z_dim) and labels (B,), and pack the maps of all their cells.

    The images are those of `sampling.generate`, bit for bit, and the generator is not changed. Memory: all rows of one
    batch. UserError without attention modules, for maps that are not finite, and for a page above `largest` MB.
    """
    _check_rows(generator, z, labels, seeds)
    images: list[Tensor] = []
    found: dict[str, tuple[str, tuple[int, int], list[tuple[Packed, ...]]]] = {}  # name -> kind, keys, maps
    device = next(generator.parameters()).device
    with inspected(generator) as fused, Progress(len(z), "packing attention maps", quiet=not progress) as shown:
        for start in range(0, len(z), BATCH):
            rows = slice(start, start + BATCH)
            drawn, maps = record_batch(fused, None, z[rows], None if labels is None else labels[rows], device)
            images.append(drawn)
            for image in range(len(drawn)):
                for name, recorded in maps.items():
                    if shown_on_page(recorded.kind):
                        keys = recorded.weights.shape[3], recorded.weights.shape[4]
                        kept = found.setdefault(name, (recorded.kind, keys, []))[2]
                        kept.append(_packed(name, recorded.weights[image].flatten(2).numpy()))
                _check_size([kept for _, _, kept in found.values()], len(z), largest)
                shown.advance()
    gammas, sizes = module_gammas(generator), resolutions(generator)
    return PageData(
        images=torch.cat(images).numpy(),
        seeds=np.array(seeds, np.int64),
        labels=np.full(len(z), -1) if labels is None else labels.cpu().numpy(),
        class_names=generator.class_names,
        layers=tuple(
            Layer(name, kind, sizes[module_of(name)], keys, gamma_of(gammas, name), tuple(maps))
            for name, (kind, keys, maps) in found.items()
        ),
    )


def shown_on_page(kind: str) -> bool:
    """Whether maps of this kind are weights of positions, for each cell or the same for every cell."""
    return KINDS[kind].spatial and kind != "sampling grid"


def _check_rows(generator: Generator, z: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> None:
    """UserError where no map can be shown, or one is too large to be held whole; found from one point of one image."""
    first = attention_of(generator, z[:1], None if labels is None else labels[:1], seeds[:1], grid_points(1))
    if not first.maps:
        raise UserError("the network has no attention module, so there is nothing to show")
    maps = {name: found for name, found in first.maps.items() if shown_on_page(found.kind)}
    if not maps:
        kinds = ", ".join(sorted({found.kind for found in first.maps.values()}))
        raise UserError(f"--html: no map lies on the image ({kinds}); only the figure and the arrays show them")
    each = {
        name: (math.prod(first.resolution[name]) if KINDS[found.kind].per_query else 1) * found.weights.numel()
        for name, found in maps.items()
    }
    if sum(each.values()) > MOST_WEIGHTS:
        name = max(each, key=lambda name: each[name])
        raise UserError(
            f"{name}: all rows of its map are {each[name] / 1e6:.0f} million weights per image, the page holds "
            f"{MOST_WEIGHTS / 1e6:.0f} million; {OTHERWISE}"
        )


def _packed(name: str, heads: np.ndarray) -> tuple[Packed, ...]:
    """The maps of an image, (heads, N, M)."""
    if not np.isfinite(heads).all():
        raise UserError(f"{name}: its weights are not finite, so training has diverged; take an earlier snapshot")
    return tuple(pack(weights) for weights in heads)


def _check_size(layers: list[list[tuple[Packed, ...]]], count: int, largest: float) -> None:
    """UserError where the page would be too large, judged by the maps packed so far (as base64)."""
    size = sum(len(packed.content) for layer in layers for image in layer for packed in image) * 4 / 3 / 1e6
    if size > largest:
        each = size / len(layers[0])
        fitting = int(largest / each)
        advice = f"choose at most {fitting}, with fewer --seeds or --classes" if fitting else OTHERWISE
        raise UserError(
            f"the maps of {count} images need about {each * count:.2g} MB, a page holds {largest:g}; {advice}"
        )


ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("maps.js", "state.js", "drawing.js", "words.js", "page.js")  # one scope
GATES = ("spatial gate", "basis map")  # maps that lie in [0, 1]
NUMBERS = {
    "gamma": ("Gain", "gamma in y = x + gamma · attention(x); 0: unused"),
    "entropy": ("Entropy", "1: uniform attention"),
    "distance": ("Distance", "mean distance to the attended cells, in map sides"),
    "far_mass": ("Far mass", "weight outside the surrounding 7×7 cells"),
    "variation": ("Variation", "difference between cells; 0: all have the same map"),
}


def write_page(path: Path, data: PageData, health: dict[str, dict[str, float]], source: str) -> None:
    """Write the page atomically; equal arguments give equal bytes."""
    page = attention_page(data, health, source)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def attention_page(data: PageData, health: dict[str, dict[str, float]], source: str) -> str:
    """The page as HTML. `health`: the numbers of `sagan.inspection.health`; `source`: where the generator is from."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"(async () => {{\n{parts}}})();\n"
    policy = f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}"
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        title=html.escape(f"Attention of {source}"),
        source=html.escape(source),
        style=style,
        health="\n".join(_health(name, numbers) for name, numbers in health.items()),
        storage=_storage(data.layers),
        data=_json(_content(data)),
        maps="\n".join(_maps(i, layer) for i, layer in enumerate(data.layers)),
        script=script,
    )


def _content(data: PageData) -> dict:
    """What the script reads, except the maps."""
    names = [_class_name(data, int(label)) for label in data.labels]
    return {
        "resolution": data.images.shape[1],
        "colors": COLORS,
        "signs": SIGNS,
        "uniformFull": FULL,
        "images": [
            {"source": _png(image), "name": name, "seed": int(seed)}
            for image, name, seed in zip(data.images, names, data.seeds, strict=True)
        ],
        "layers": [
            {
                "title": _title(layer),
                "scale": _scale(layer),
                "size": layer.size,
                "keys": layer.keys,
                "perQuery": KINDS[layer.kind].per_query,
                "heads": len(layer.maps[0]),
                "maps": [
                    [
                        {"form": p.form, "signed": p.signed, "shape": p.shape, "rank": p.rank, "step": p.step}
                        for p in image
                    ]
                    for image in layer.maps
                ],
            }
            for layer in data.layers
        ],
    }


def _scale(layer: Layer) -> str:
    """How weights become opacity: "share" of 1, "gate" in [0, 1], "signed" about 0, or an "amount" from 0."""
    if KINDS[layer.kind].sums_to_one == ROW:
        return "share"
    if any(packed.signed for image in layer.maps for packed in image):
        return "signed"
    return "gate" if layer.kind in GATES else "amount"


def _title(layer: Layer) -> str:
    gamma = [] if layer.gamma is None else [f"gamma {layer.gamma:.2g}"]
    kind = [] if layer.kind == "softmax row" else [layer.kind]
    keys = f"{layer.keys[0]}x{layer.keys[1]} keys"
    return ", ".join([layer.name.removeprefix("attention."), keys, *kind, *gamma])


def _class_name(data: PageData, label: int) -> str:
    if label < 0:
        return ""
    return data.class_names[label] if data.class_names else f"class {label}"


def _maps(index: int, layer: Layer) -> str:
    return "\n".join(
        f'<script type="text/plain" id="map-{index}-{image}-{head}">{_base64(packed.content)}</script>'
        for image, heads in enumerate(layer.maps)
        for head, packed in enumerate(heads)
    )


def _health(name: str, numbers: dict[str, float]) -> str:
    """A sentence and a table for one map."""
    rows = []
    for key, (title, meaning) in NUMBERS.items():
        if key in numbers:
            uniform = f"{numbers[f'uniform_{key}']:.2f}" if f"uniform_{key}" in numbers else ""
            own = f"{numbers[key]:.3g}" if key == "gamma" else _decimals(key, numbers[key])
            rows.append(
                f'<tr><th scope="row">{title} <small>{meaning}</small></th><td>{own}</td><td>{uniform}</td></tr>'
            )
    head = '<thead><tr><th></th><th scope="col">value</th><th scope="col">uniform</th></tr></thead>' if rows else ""
    return f"<p>{html.escape(describe({name: numbers}))}</p>\n<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _decimals(key: str, value: float) -> str:
    """Two decimals; an entropy just below that of uniform attention is not rounded up to it."""
    return f"{value:.4f}" if key == "entropy" and EVEN <= value < 1 else f"{value:.2f}"


def _storage(layers: tuple[Layer, ...]) -> str:
    error = max(packed.error for layer in layers for image in layer.maps for packed in image)
    return (
        f"Weights are stored with an error of at most {math.ceil(1e4 * error) / 100:.2g} % of the largest in their map."
    )


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{_base64(file.getvalue())}"


def _json(content: dict) -> str:
    """JSON that neither closes nor opens an HTML element."""
    text = json.dumps(content, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _hash(text: str) -> str:
    """The hash of a script or style for the content security policy."""
    return f"'sha256-{_base64(sha256(text.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

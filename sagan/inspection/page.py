"""The attention page: one HTML file in which the pointer shows what each cell of an image attends to.

It needs no server and no network; its content security policy allows only its own script and style. Colors and opacity
are those of `sagan.inspection.figure`: weight / max(largest weight of the map, FULL / M).
"""

import base64
import html
import io
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image
from torch import Tensor

from sagan.attention import KINDS
from sagan.attention.base import ROW
from sagan.inspection.figure import COLORS, FULL, GATED, SIGNS
from sagan.inspection.health import EVEN, describe
from sagan.inspection.record import Recording, inspected, record_batch
from sagan.models.generator import Generator
from sagan.sampling.sampler import BATCH
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file
from sagan.utils.progress import Progress
from sagan.utils.random import numpy_generator

BOUND = 1 / 510  # error allowed, relative to a row's peak: half a step of a byte
RANK = 128  # largest number of factors
OVERSAMPLING = 16  # directions beyond RANK in the sketch of the matrix
MIN_RATIO = 1e-38  # smaller weights are rounding errors
INT16_MAX = 2**15 - 1
NEGLIGIBLE = BOUND / 64  # in a logit


@dataclass(frozen=True)
class Packed:
    """One map of one image and head."""

    form: str  # "factors" or "bytes"
    signed: bool  # some weights are negative
    shape: tuple[int, int]  # N query cells, M keys
    rank: int  # of factors, else 0
    step: float  # of factors, else 0
    content: bytes  # deflated: N peaks, float32, then A and B (int16) or the bytes (uint8, int8), little-endian
    error: float  # largest |weight - unpacked| of a row, relative to its peak


def pack(weights: np.ndarray) -> Packed:
    """Pack finite weights (N, M): as low-rank factors of the logits if that is smaller, else one byte per weight."""
    weights = weights.astype(np.float64)
    signed = bool((weights < 0).any())
    peaks = np.abs(weights).max(axis=1).astype("<f4")
    ratios = weights / np.where(peaks > 0, peaks, 1)[:, None]
    levels = np.rint(127.5 * ratios).clip(-127, 127).astype(np.int8) if signed else np.rint(255 * ratios).astype("u1")
    error = float(np.abs(levels / (127.5 if signed else 255) - ratios).max())
    n, m = ratios.shape
    packed = Packed("bytes", signed, (n, m), 0, 0.0, zlib.compress(peaks.tobytes() + levels.tobytes()), error)
    factors = None if signed or not peaks.all() else _factors(ratios)
    if factors is None:
        return packed
    a, b, step, error = factors
    both = np.concatenate([a, b]).astype("<i2").view("<u2")
    planes = np.stack([both & 255, both >> 8]).astype(np.uint8)  # low bytes, then high bytes, which compress well
    content = zlib.compress(peaks.tobytes() + planes.tobytes(), 9)
    smaller = len(content) < len(packed.content)
    return Packed("factors", False, (n, m), a.shape[1], step, content, error) if smaller else packed


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


def _factors(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Integer factors (N, r), (M, r) of the logits, their step, and their error. None if it would exceed BOUND."""
    logits = np.log(np.maximum(ratios, MIN_RATIO))
    left, right = _balanced_factors(logits - logits.mean(axis=1, keepdims=True))
    if np.abs(_ratios(left, right, 1) - ratios).max() > BOUND / 2:
        return None
    norms = np.square(left).sum(axis=1).max() + np.square(right).sum(axis=1).max()
    largest = max(np.abs(left).max(initial=0), np.abs(right).max(initial=0))
    spacing = max(BOUND / np.sqrt(norms + 1e-12), largest / INT16_MAX)
    for _ in range(6):
        a, b = np.rint(left / spacing), np.rint(right / spacing)
        if max(np.abs(a).max(initial=0), np.abs(b).max(initial=0)) > INT16_MAX:
            return None
        used = a.any(axis=0) & b.any(axis=0)
        a, b = a[:, used], b[:, used]
        error = float(np.abs(_ratios(a, b, spacing**2) - ratios).max())
        if error <= BOUND:
            return a, b, float(spacing**2), error
        spacing /= 2**0.5
    return None


def _ratios(left: np.ndarray, right: np.ndarray, step: float) -> np.ndarray:
    """weight / peak (N, M) of factors."""
    logits = left @ right.T
    return np.exp(step * (logits - logits.max(axis=1, keepdims=True)))


def _balanced_factors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best approximation of a matrix by factors (N, r) and (M, r), r ≤ RANK: singular vectors times √singular value.

    A large matrix is first projected onto a random sketch of its range (Halko, Martinsson & Tropp 2011, one power
    iteration), which is exact up to rounding if its rank is at most RANK.
    """
    if min(matrix.shape) <= RANK + OVERSAMPLING:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        sketch = numpy_generator(0, "attention page").standard_normal((matrix.shape[1], RANK + OVERSAMPLING))
        basis = np.linalg.qr(matrix @ sketch)[0]
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]  # (N, RANK + OVERSAMPLING)
        u, s, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    weighty = np.flatnonzero(s * np.abs(u).max(axis=0) * np.abs(v).max(axis=1) > NEGLIGIBLE)[:RANK]
    root = np.sqrt(s[weighty])
    return u[:, weighty] * root, v[weighty].T * root


LARGEST_PAGE = 64  # MB
MAX_WEIGHTS = 2**25  # of all maps of an image: a batch takes 1 GiB, and packing one map up to as much
FEW_POINTS = "the figure and the arrays hold only the rows of a few points"


@dataclass(frozen=True)
class Layer:
    """All rows of one map, packed."""

    name: str
    kind: str
    keys: tuple[int, int]
    maps: list[tuple[Packed, ...]]  # (B) × heads


def pack_layers(
    generator: Generator, z: Tensor, labels: Tensor | None, recording: Recording, largest: float = LARGEST_PAGE
) -> list[Layer]:
    """Pack the maps of all cells of a recording's images, which come from z (B, z_dim) and labels (B,).

    The generator is not changed. Memory: all rows of one batch. UserError for maps that are not finite or too large,
    and for a page above `largest` MB.
    """
    _check_maps(recording)
    layers: dict[str, Layer] = {}
    device = next(generator.parameters()).device
    with inspected(generator) as fused, Progress(len(z), "packing attention maps") as progress:
        for start in range(0, len(z), BATCH):
            rows = slice(start, start + BATCH)
            _, maps = record_batch(fused, None, z[rows], None if labels is None else labels[rows], device)
            maps = {name: found for name, found in maps.items() if on_page(found.kind)}
            for image in range(len(z[rows])):
                for name, found in maps.items():
                    weights = found.weights[image].flatten(2).numpy()  # (heads, N, M)
                    if not np.isfinite(weights).all():
                        raise UserError(
                            f"{name}: its weights are not finite, so training has diverged; take an earlier snapshot"
                        )
                    keys = found.weights.shape[3], found.weights.shape[4]
                    layer = layers.setdefault(name, Layer(name, found.kind, keys, []))
                    layer.maps.append(tuple(pack(head) for head in weights))
                _check_size(layers, len(z), largest)
                progress.advance()
    return list(layers.values())


def on_page(kind: str) -> bool:
    """Whether maps of this kind hold a weight for each position."""
    return KINDS[kind].spatial and kind != "sampling grid"


def _check_maps(recording: Recording) -> None:
    """UserError if no map can be shown, or if the maps are too large to compute all rows."""
    sizes = {
        name: (math.prod(recording.resolution[name]) if KINDS[m.kind].per_query else 1) * m.weights[0, :, 0].numel()
        for name, m in recording.maps.items()
        if on_page(m.kind)
    }
    if not sizes:
        kinds = ", ".join(sorted({m.kind for m in recording.maps.values()}))
        raise UserError(f"--html: no map lies on the image ({kinds}); only the figure and the arrays show them")
    if sum(sizes.values()) > MAX_WEIGHTS:
        name = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"{name}: all rows of its map are {sizes[name] / 1e6:.0f} million weights per image, the page holds "
            f"{MAX_WEIGHTS / 1e6:.0f} million; {FEW_POINTS}"
        )


def _check_size(layers: dict[str, Layer], count: int, largest: float) -> None:
    """UserError if the page would be too large, extrapolated from the images packed so far (as base64)."""
    maps = [layer.maps for layer in layers.values()]
    each = sum(len(p.content) for images in maps for image in images for p in image) * 4 / 3 / 1e6 / len(maps[0])
    if each * len(maps[0]) > largest:
        fitting = int(largest / each)
        advice = f"choose at most {fitting}, with fewer --seeds or --classes" if fitting else FEW_POINTS
        raise UserError(
            f"the maps of {count} images need about {each * count:.2g} MB, a page holds {largest:g}; {advice}"
        )


ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("maps.js", "state.js", "drawing.js", "words.js", "page.js")  # one scope, with recorded.js or live.js
SCALES = {"colors": COLORS, "signs": SIGNS, "uniformFull": FULL}
NUMBERS = {
    "gamma": ("Gain", "gamma in y = x + gamma · attention(x); 0: unused"),
    "entropy": ("Entropy", "1: uniform attention"),
    "distance": ("Distance", "mean distance to the attended cells, in map sides"),
    "far_mass": ("Far mass", "weight outside the surrounding 7×7 cells"),
    "variation": ("Variation", "difference between cells; 0: all have the same map"),
}


def write_page(
    path: Path, recording: Recording, layers: list[Layer], health: dict[str, dict[str, float]], source: str
) -> None:
    """Write the page atomically. Equal arguments give equal bytes."""
    with atomic_file(path) as temporary:
        temporary.write_text(attention_page(recording, layers, health, source), encoding="utf-8")


def attention_page(recording: Recording, layers: list[Layer], health: dict[str, dict[str, float]], source: str) -> str:
    """The page as HTML. `health`: statistics from `sagan.inspection.health`; `source`: name of the generator."""
    packed = [
        (f"map-{i}-{image}-{head}", p)
        for i, layer in enumerate(layers)
        for image, heads in enumerate(layer.maps)
        for head, p in enumerate(heads)
    ]
    error = math.ceil(1e4 * max(p.error for _, p in packed)) / 100
    return render_page(
        ("recorded.js",),
        _content(recording, layers),
        {id: p.content for id, p in packed},
        source=source,
        lead="Point at an image to highlight what the cell under the pointer attends to. "
        "Click to pin a cell and compare.",
        health="\n".join(_health(name, numbers) for name, numbers in health.items()),
        storage=f"Weights are stored with an error of at most {error:.2g} % of the largest in their map.",
    )


def render_page(
    scripts: Sequence[str], content: dict, inflatable: Mapping[str, bytes], *, source: str, lead: str, health: str = "",
    storage: str = "", controls: str = "", tools: str = "", allowed: str = "", others: str = "",
) -> str:  # fmt: skip
    """Fill page.html. `scripts` follow SCRIPTS; `content` is their JSON, `inflatable` deflated bytes by id.

    The content security policy allows the script and the style by their hashes, and beyond them `allowed` scripts and
    `others`, further directives.
    """
    style = asset("page.css")
    parts = "\n".join(asset(name) for name in (*SCRIPTS, *scripts))
    script = f"(async () => {{\n{parts}}})();\n"
    hashes = [f"'sha256-{_base64(sha256(text.encode()).digest())}'" for text in (script, style)]
    policy = f"default-src 'none'; img-src data:; script-src {hashes[0]}{allowed}; style-src {hashes[1]}{others}"
    data = json.dumps(content, separators=(",", ":"))
    return Template(asset("page.html")).substitute(
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        title=html.escape(f"Attention of {source}"),
        source=html.escape(source),
        lead=lead,
        style=style,
        controls=controls,
        tools=tools,
        health=health,
        storage=storage,
        data=re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", data),  # neither opens nor closes an element
        maps="\n".join(f'<script type="text/plain" id="{id}">{_base64(b)}</script>' for id, b in inflatable.items()),
        script=script,
    )


def asset(name: str) -> str:
    """The text of a file of the page."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _content(recording: Recording, layers: list[Layer]) -> dict:
    """Input of the script, except the maps."""
    images = []
    for i, (image, seed) in enumerate(zip(recording.images, recording.seeds, strict=True)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        source = f"data:image/png;base64,{_base64(file.getvalue())}"
        images.append({"source": source, "name": recording.class_name(i), "seed": int(seed)})
    content = []
    for layer in layers:
        fields = ("form", "signed", "shape", "rank", "step")
        content.append({
            "title": layer_title(layer.name, layer.kind, layer.keys, recording.gamma.get(layer.name)),
            "scale": scale_of(layer.kind, any(packed.signed for image in layer.maps for packed in image)),
            "size": recording.resolution[layer.name],
            "keys": layer.keys,
            "perQuery": KINDS[layer.kind].per_query,
            "heads": len(layer.maps[0]),
            "maps": [[{field: getattr(p, field) for field in fields} for p in image] for image in layer.maps],
        })  # fmt: skip
    return {"resolution": recording.images.shape[1], **SCALES, "images": images, "layers": content}


def layer_title(name: str, kind: str, keys: tuple[int, int], gamma: float | None) -> str:
    """The name of a map in the menu."""
    title = [name.removeprefix("attention."), f"{keys[0]}x{keys[1]} keys", *([] if kind == "softmax row" else [kind])]
    return ", ".join(title if gamma is None else [*title, f"gamma {gamma:.2g}"])


def scale_of(kind: str, signed: bool) -> str:
    """How weights become opacity: "share" of 1, "gate" in [0, 1], "signed" about 0, or an "amount" from 0."""
    if KINDS[kind].sums_to_one == ROW:
        return "share"
    return "signed" if signed else "gate" if kind in GATED else "amount"


def _health(name: str, numbers: dict[str, float]) -> str:
    """A sentence and a table for one map."""
    rows = []
    for key, (title, meaning) in NUMBERS.items():
        if key in numbers:
            value, uniform = numbers[key], numbers.get(f"uniform_{key}")
            # an entropy just below that of uniform attention is not rounded up to it
            digits = ".3g" if key == "gamma" else ".4f" if key == "entropy" and EVEN <= value < 1 else ".2f"
            cells = f"<td>{value:{digits}}</td><td>{'' if uniform is None else f'{uniform:.2f}'}</td>"
            rows.append(f'<tr><th scope="row">{title} <small>{meaning}</small></th>{cells}</tr>')
    head = '<thead><tr><th></th><th scope="col">value</th><th scope="col">uniform</th></tr></thead>' if rows else ""
    return f"<p>{html.escape(describe(name, numbers))}</p>\n<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

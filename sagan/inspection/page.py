"""The attention page: one HTML file in which the pointer shows what each cell of an image attends to.

It needs no server and no network, and may not use one: its policy lets it run its own script and nothing else. Colours
and opacity are those of the figure (`sagan.inspection.tiles`): weight / max(largest weight of the map, FULL / M).
"""

import base64
import html
import io
import json
import math
import re
from hashlib import sha256
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from sagan.attention import KINDS
from sagan.attention.base import ROW
from sagan.files import atomic_file
from sagan.inspection.health import EVEN, describe
from sagan.inspection.page_data import Layer, PageData
from sagan.inspection.tiles import COLOURS, FULL, SIGNS

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("maps.js", "state.js", "drawing.js", "words.js", "page.js")  # one scope
GATES = ("spatial gate", "basis map")  # maps that lie in [0, 1]
NUMBERS = {
    "gamma": ("Gain", "gamma, with which attention enters; 0: unused"),
    "entropy": ("Entropy", "1: attends to everything alike"),
    "distance": ("Distance", "from a cell to what it attends to, in sides of the map"),
    "far_mass": ("Far mass", "share outside the 7×7 cells around"),
    "variation": ("Variation", "between cells; 0: all have the same map"),
}


def write_page(path: Path, data: PageData, health: dict[str, dict[str, float]], source: str) -> None:
    """Write the page, whole or not at all; equal arguments give equal bytes."""
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
    """What the script reads, but for the maps themselves."""
    names = [_class_name(data, int(label)) for label in data.labels]
    return {
        "resolution": data.images.shape[1],
        "colours": COLOURS,
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
    """A sentence and a table of one map."""
    rows = []
    for key, (title, meaning) in NUMBERS.items():
        if key in numbers:
            uniform = f"{numbers[f'uniform_{key}']:.2f}" if f"uniform_{key}" in numbers else ""
            own = f"{numbers[key]:.3g}" if key == "gamma" else _decimals(key, numbers[key])
            rows.append(
                f'<tr><th scope="row">{title} <small>{meaning}</small></th><td>{own}</td><td>{uniform}</td></tr>'
            )
    head = '<thead><tr><th></th><th scope="col">here</th><th scope="col">uniform</th></tr></thead>' if rows else ""
    return f"<p>{html.escape(describe({name: numbers}))}</p>\n<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _decimals(key: str, value: float) -> str:
    """Two decimals; an entropy just below that of uniform attention is not rounded up to it."""
    return f"{value:.4f}" if key == "entropy" and EVEN <= value < 1 else f"{value:.2f}"


def _storage(layers: tuple[Layer, ...]) -> str:
    error = max(packed.error for layer in layers for image in layer.maps for packed in image)
    return f"Weights are exact to {math.ceil(1e4 * error) / 100:.2g} % of the largest of their map."


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{_base64(file.getvalue())}"


def _json(content: dict) -> str:
    """JSON that ends no element and begins none."""
    text = json.dumps(content, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _hash(text: str) -> str:
    """A script or style as the content security policy names it."""
    return f"'sha256-{_base64(sha256(text.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

"""`sagan explore`: a page that runs the generator in the browser and shows the attention of every image.

The network is the ONNX file of `sagan export --attention` with inputs that cut edges and scale gains; onnxruntime-web
runs it. The page contains both, or lies in a folder with them; it never loads anything from elsewhere.
"""

import hashlib
import json
import math
import re
import tarfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from sagan.attention import KINDS, AttentionMap, AttentionModule, attention_modules, record_attention
from sagan.config.options import HIGHEST_SEED, Place
from sagan.config.options import as_json as json_option
from sagan.evaluation.extractors import Pretrained, find_weights
from sagan.inspection.page import MAX_WEIGHTS, SCALES, asset, layer_title, on_page, render_page, scale_of
from sagan.inspection.record import gamma_of, module_gammas, module_of
from sagan.models.generator import Generator
from sagan.runs.snapshot import load_snapshot
from sagan.sampling.export import OPSET, describe_file, trace, write_onnx
from sagan.sampling.sampler import default_labels, latents
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_file, atomic_folder, check_file_place, check_folder_place, sha256

VERSION = "1.30.0"
PACKAGE = Pretrained(
    f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz",
    "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
)
RUNTIME = {  # file of the package -> SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
CODE, WASM = RUNTIME
FILES = {"worker": "worker.js", "wasm": WASM, "model": "model.onnx"}
LARGEST = {False: 64, True: 256}  # MB of weights, by --folder
NONE = "'none'"
TRUNCATIONS = [round(0.1 * step, 1) for step in range(1, 21)]
NO_IMAGE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
LEAD = (
    "The generator runs in this page. Point at the image to highlight what the cell under the pointer attends to. "
    "Click to pin a cell and compare."
)
CHANGES = (
    "Pin a cell, press Cut and drag a rectangle over the keys: the edges to them are cut, and the rest of the softmax "
    "grows. Or point at a cell, hold Shift and drag. With the keyboard, X cuts the key with the largest weight."
)
STORAGE = "Seeds give the images of <code>sagan sample</code>, except for one gray level in a few pixels."
CARD = """---
title: {title}
sdk: static
app_file: index.html
---

Attention of a generator of `sagan`, live in the browser. Serve this folder over HTTP, for example with
`python -m http.server`; or push it to a static Space of Hugging Face or to GitHub Pages.

`ort*` are files of onnxruntime-web {version} (MIT license, https://github.com/microsoft/onnxruntime).
"""


@click.command("explore")
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, metavar="FILE|DIR", help="An .html file; with --folder a folder.")
@click.option("--folder", is_flag=True, help="Write separate files for a web site.")
@click.option("--runtime", type=Place(), metavar="PATH",
              help=f"onnxruntime-web {VERSION}: npm's .tgz or its unpacked folder.  [default: a download]")  # fmt: skip
@json_option
def explore_cli(snapshot: str, out: Path, folder: bool, runtime: Path | None, as_json: bool) -> None:
    """Write a page that runs the generator of SNAPSHOT (a snapshot, a run or a Hub id) in the browser."""
    if folder:
        check_folder_place(out)
    elif out.suffix != ".html":
        raise UserError(f"--out {out}: name an .html file, or give --folder")
    else:
        check_file_place(out)
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"the page needs {' and '.join(missing)}, not installed here: pip install 'sagan[export]'")
    generator = load_snapshot(snapshot)
    content = page_content(generator)
    check_size(generator, content["layers"], folder)
    parts = read_runtime(runtime)
    files = {"worker": worker_script(parts[CODE]), "wasm": parts[WASM], "model": network_file(generator)}
    write = write_folder if folder else write_file
    size = write(out, content, files, Path(snapshot).name)
    attention = [layer["name"] for layer in content["layers"]]
    without = "" if attention else "; this generator has no attention to show"
    result = {"file": str(out), "bytes": size, "layers": attention}
    print(json.dumps(result) if as_json else f"{out}: {size / 1e6:.1f} MB{without}")


@torch.no_grad()
def page_content(generator: Generator) -> dict[str, Any]:
    """Input of the script, except where the files are."""
    with record_attention(generator, torch.full((1, 2), 0.5)) as maps:
        generator(latents([0], generator.z_dim), default_labels([0], generator.num_classes))
    kinds = ", ".join(sorted({found.kind for found in maps.values()}))
    tails = torch.special.ndtr(-torch.tensor(TRUNCATIONS, dtype=torch.float64)).tolist()
    return {
        "resolution": generator.resolution,
        **SCALES,
        "images": [{"source": NO_IMAGE, "name": "", "seed": ""}],
        "layers": [_layer(generator, name, found) for name, found in maps.items() if on_page(found.kind)],
        "modules": [_module(name, module) for name, module in attention_modules(generator).items()],
        "classes": generator.class_names or [f"class {i}" for i in range(generator.num_classes)],
        "zDim": generator.z_dim,
        "highestSeed": HIGHEST_SEED,
        "tails": list(zip(TRUNCATIONS, tails, strict=True)),
        "changes": CHANGES,
        "widest": 448,  # CSS pixels of the image
        "none": f"No map lies on the image ({kinds})." if kinds else "This generator has no attention.",
    }


def _layer(generator: Generator, name: str, found: AttentionMap) -> dict[str, Any]:
    """A map, as in `page._content`."""
    keys = found.weights.shape[3], found.weights.shape[4]
    module, gamma = attention_modules(generator).get(module_of(name)), gamma_of(module_gammas(generator), name)
    return {
        "name": name,
        "module": module_of(name),
        "title": layer_title(name, found.kind, keys, gamma),
        "gamma": gamma,
        "scale": scale_of(found.kind, found.kind == "signed weight"),
        "size": keys if module is None else module.resolution,
        "keys": keys,
        "perQuery": KINDS[found.kind].per_query,
        "heads": found.weights.shape[1],
    }


def _module(name: str, module: AttentionModule) -> dict[str, Any]:
    """An attention layer that can be changed; `queries` and `keys` are the sizes of its maps if edges can be cut."""
    queries, keys = module.map_sizes if module.editable else (None, None)
    return {"name": name, "title": name.removeprefix("attention."), "queries": queries, "keys": keys}


def check_size(generator: Generator, layers: list[dict[str, Any]], folder: bool) -> None:
    """UserError if the weights or the maps are too large for a page."""
    size = sum(weight.numel() * weight.element_size() for weight in generator.state_dict().values()) / 1e6
    if size > LARGEST[folder]:
        advice = "" if folder else f"; with --folder {LARGEST[True]} MB"
        raise UserError(f"the weights of this generator take {size:.0f} MB, a page holds {LARGEST[folder]} MB{advice}")
    for layer in layers:
        cells = math.prod(layer["size"]) if layer["perQuery"] else 1
        count = cells * math.prod(layer["keys"]) * layer["heads"]
        if count > MAX_WEIGHTS:
            raise UserError(
                f"{layer['name']}: all rows of its map are {count / 1e6:.0f} million weights, a page holds "
                f"{MAX_WEIGHTS / 1e6:.0f} million"
            )


def read_runtime(given: Path | None = None) -> dict[str, bytes]:
    """The files of RUNTIME: from `given` (npm's .tgz, or its unpacked folder), the cache of torch hub, or a download.

    UserError if they cannot be had, or are not those of this version.
    """
    folder = given if given is not None and given.is_dir() else None
    files = {}
    if folder is not None:
        for name in RUNTIME:
            place = next((p for p in (folder / name, folder / "dist" / name) if p.is_file()), None)
            if place is None:
                raise UserError(f"--runtime {folder}: {name} is missing; give the unpacked package of onnxruntime-web")
            files[name] = place.read_bytes()
    else:
        path = find_weights(PACKAGE, given, "--runtime")
        if sha256(path) != PACKAGE.sha256:  # before it is opened
            raise UserError(f"{path}: is not the package of onnxruntime-web {VERSION}")
        with tarfile.open(path) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                files[name] = member.read()
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != RUNTIME[name]:
            raise UserError(f"{given}: {name} is not that of onnxruntime-web {VERSION}")
    return files


def worker_script(runtime: bytes) -> bytes:
    """The worker: onnxruntime-web as `ort`, maps.js and engine.js, as one classic script.

    Browsers start no worker that is a module in a page opened from disk, so the exports become an object, and the
    module's own address, which is used to find the .wasm file, a name that nothing is loaded from.
    """
    code, exports = re.findall(r"^(.*)export\{([^}]*)\};", runtime.decode(), re.DOTALL)[0]
    pairs = [pair.split(" as ") for pair in exports.split(",")]
    names = ", ".join(f"{public}: {own}" for own, public in pairs)
    code = code.replace("import.meta.url", '"https://localhost/"')
    engine = f"{asset('maps.js')}{asset('engine.js')}"
    return f"(() => {{\n{code}const ort = {{ {names} }};\n(() => {{\n{engine}}})();\n}})();\n".encode()


def network_file(generator: Generator) -> bytes:
    """The ONNX file that the page runs: bytes as images, maps of all cells, and inputs that change its layers."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(trace(generator, True, True, True), path, describe_file(generator, True, True, True), OPSET)
        return path.read_bytes()


def write_file(path: Path, content: dict[str, Any], files: Mapping[str, bytes], source: str) -> int:
    """Write one HTML file that contains everything; its size in bytes. Equal arguments give equal bytes."""
    inflatable = {id: zlib.compress(part, 9) for id, part in files.items()}
    page = _page({**content, "files": {}, "advice": ""}, inflatable, source)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return len(page.encode())


def write_folder(path: Path, content: dict[str, Any], files: Mapping[str, bytes], source: str) -> int:
    """Write index.html, its files and README.md into a folder, which is replaced; its size in bytes."""
    advice = "Serve the folder over HTTP, for example with python -m http.server."
    page = _page({**content, "files": FILES, "advice": advice}, {}, source, "'self'")
    card = CARD.format(title=json.dumps(f"Attention of {source}"), version=VERSION)
    everything = {
        **{FILES[id]: part for id, part in files.items()},
        "index.html": page.encode(),
        "README.md": card.encode(),
    }
    with atomic_folder(path) as temporary:
        for name, bytes_ in everything.items():
            (temporary / name).write_bytes(bytes_)
    return sum(map(len, everything.values()))


def _page(content: dict[str, Any], inflatable: dict[str, bytes], source: str, own: str = "") -> str:
    """`own`: "'self'" if files beside the page may be loaded."""
    return render_page(
        ("latents.js", "live.js"),
        content,
        inflatable,
        source=source,
        lead=LEAD,
        storage=STORAGE,
        controls=asset("live_controls.html"),
        tools=asset("live_tools.html"),
        allowed=" 'wasm-unsafe-eval'",
        others=f"; worker-src {own or 'blob:'}; connect-src {own or NONE}",
    )

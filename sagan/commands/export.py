"""`sagan export`: the generator as an ONNX file or a torch.export program, compared with itself before it is kept."""

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagan.errors import UserError
from sagan.files import atomic_file, check_file_place

if TYPE_CHECKING:
    from sagan.networks import Generator

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
WRITES, RUNS = ("onnx", "onnxscript"), ("onnxruntime",)
OPSET = 18


def export_command(
    snapshot: str,
    out: Path,
    kind: str | None = None,
    opset: int | None = None,
    uint8: bool = False,
    check: bool = True,
    speed: bool = False,
    as_json: bool = False,
) -> None:
    """Write the file `out` of `kind` "onnx" or "torch". The options are those of `sagan export`.

    UserError, before torch is imported, for options that do not fit together and packages that are missing; afterwards
    for a bad snapshot, and for images that differ from the generator's: then nothing is written.
    """
    kind = _kind(out, kind)
    if opset is not None and kind != "onnx":
        raise UserError(f"--opset {opset}: a .pt2 file has none; leave it out, or write a .onnx file")
    check_file_place(out)
    if kind == "onnx":
        _require_packages((*WRITES, *RUNS) if check or speed else WRITES)

    from sagan import export
    from sagan.snapshot import load_snapshot

    generator = load_snapshot(snapshot)
    about = _about(generator, uint8)
    print(f"{out}: exporting", file=sys.stderr)
    program = export.trace(generator, uint8)
    result: dict[str, Any] = {"file": str(out), "format": kind, "fingerprint": about["fingerprint"]}
    with atomic_file(out) as temporary:
        if kind == "onnx":
            result["opset"] = opset or OPSET
            export.write_onnx(program, temporary, about, result["opset"])
        else:
            export.write_program(program, temporary, about)
        result["bytes"] = temporary.stat().st_size
        if check or speed:
            draw = export.open_onnx(temporary) if kind == "onnx" else export.open_program(temporary)
            if check:
                result |= _differences(out, draw, generator, uint8)
            if speed:
                from sagan.commands.export_speed import speed_of

                result |= speed_of(draw, generator)
    _say(result, as_json)


def _kind(out: Path, kind: str | None) -> str:
    """The format that is asked for, or that the file's name says."""
    of_suffix = {suffix: name for name, suffix in SUFFIXES.items()}.get(out.suffix)
    if kind is None and of_suffix is None:
        raise UserError(f"--out {out}: name a .onnx or a .pt2 file")
    if kind is not None and out.suffix != SUFFIXES[kind]:
        raise UserError(f"--out {out}: --format {kind} is written to a {SUFFIXES[kind]} file")
    return kind or str(of_suffix)


def _require_packages(names: tuple[str, ...]) -> None:
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}, not installed here: pip install 'sagan[export]'")


def _about(generator: "Generator", uint8: bool) -> dict[str, str]:
    """What the file says of itself: what made it, and of what; no dates and no paths."""
    from sagan.snapshot import fingerprint

    return {
        "project": "sagan",
        "version": version("sagan"),
        "resolution": str(generator.resolution),
        "z_dim": str(generator.z_dim),
        "num_classes": str(generator.num_classes),
        "class_names": json.dumps(generator.class_names, ensure_ascii=False),
        "images": "uint8 (B, R, R, 3)" if uint8 else "float32 (B, 3, R, R) in [-1, 1]",
        "fingerprint": fingerprint(generator),
    }


def _differences(out: Path, draw: Any, generator: "Generator", uint8: bool) -> dict[str, float]:
    """The largest and the mean; UserError where they are too large."""
    from sagan.export import ALLOWED, BATCHES, difference
    from sagan.sampling import default_labels, latents

    seeds = range(max(BATCHES))
    z, labels = latents(seeds, generator.z_dim), default_labels(seeds, generator.num_classes)
    found, allowed = difference(draw, generator, z, labels, uint8), ALLOWED[uint8]
    if not (found.largest <= allowed.largest and found.mean <= allowed.mean):  # also where it is no number
        raise UserError(
            f"{out}: its images differ from the generator's by up to {found.largest:.3g} of 255 grey levels, "
            f"{found.mean:.3g} in the mean; nothing was written, another format or --opset may do"
        )
    return {"largest_difference": found.largest, "mean_difference": found.mean}


def _say(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    kind = f"ONNX, opset {result['opset']}" if "opset" in result else "torch.export program"
    print(f"{result['file']}: {kind}, {result['bytes'] / 2**20:.1f} MiB")
    if "largest_difference" in result:
        largest, mean = result["largest_difference"], result["mean_difference"]
        print(
            f"differs from the generator's images by at most {largest:.2g} of 255 grey levels, {mean:.1g} in the mean"
        )
    if "ratio_speed" in result:
        theirs, ours = result["images_per_second_file"], result["images_per_second_sampling"]
        print(
            f"{theirs:.3g} images/s against {ours:.3g} of our sampling, one thread each: "
            f"{result['ratio_speed']:.2f} times as fast"
        )

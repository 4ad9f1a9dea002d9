"""`sagan export`: the generator as one file that runs without this project, ONNX or a torch.export program (.pt2).

In the file every up-sampling convolution is the equal transposed one (layers/resampling.py) with a folded weight, so
no kernel is chosen by the batch size, which is therefore dynamic. Bytes are reproducible: what torch records about the
tracing (paths, addresses) is removed.
"""

import copy
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sagan.config.options import Place
from sagan.config.options import as_json as json_option
from sagan.layers.resampling import UpsampleConv2d, fold_upsampling
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint, load_snapshot
from sagan.sampling.sampler import BATCH, default_labels, generate, latents
from sagan.utils.errors import UserError
from sagan.utils.images import to_uint8
from sagan.utils.io import atomic_file, check_file_place
from sagan.utils.progress import track

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

Draw = Callable[[Tensor, Tensor | None], Tensor]  # z (B, z_dim), labels (B,) -> images

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
OPSET = 18
BATCHES = (1, 5)  # batch sizes of the check; the program is traced at another one
LARGEST_ONNX = 2**31 - 1  # bytes of one protobuf file
ABOUT = "sagan.json"  # in a .pt2
TRACED_AT = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
# (largest, mean) difference in gray levels, of floats and of bytes: rounding may change a few bytes by one level
ALLOWED = {False: (0.1, 0.1), True: (1, 0.05)}


@click.command("export")
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, metavar="FILE", help="A .onnx or .pt2 file.")
@click.option("--format", "kind", type=click.Choice(["onnx", "torch"]), help="Default: by the ending of the file name.")
@click.option("--opset", type=click.IntRange(18, 25), help="ONNX opset version (default 18).")
@click.option("--uint8/--float", default=False, show_default="--float",
              help="Images as bytes (B, R, R, 3), or floats (B, 3, R, R) in [-1, 1].")  # fmt: skip
@click.option("--check/--no-check", default=True, show_default=True, help="Compare the images with the generator's.")
@click.option("--speed", is_flag=True, help="Time the file against `sagan sample`.")
@json_option
def export_cli(
    snapshot: str, out: Path, kind: str | None, opset: int | None, uint8: bool, check: bool, speed: bool, as_json: bool
) -> None:
    """Export the generator of SNAPSHOT (a snapshot, a run or a Hub id) to a file that runs without this project."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: name a .onnx or a .pt2 file")
    if kind not in (None, FORMATS[out.suffix]):
        raise UserError(f"--out {out}: a {out.suffix} file is not --format {kind}")
    onnx = out.suffix == ".onnx"
    if opset is not None and not onnx:
        raise UserError(f"--opset {opset}: a .pt2 file has none; leave it out, or write a .onnx file")
    check_file_place(out)
    packages = ("onnx", "onnxscript", *(("onnxruntime",) if check or speed else ())) if onnx else ()
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}, not installed here: pip install 'sagan[export]'")

    generator = load_snapshot(snapshot)
    about = {
        "project": "sagan",
        "version": version("sagan"),
        "resolution": str(generator.resolution),
        "z_dim": str(generator.z_dim),
        "num_classes": str(generator.num_classes),
        "class_names": json.dumps(generator.class_names, ensure_ascii=False),
        "images": "uint8 (B, R, R, 3)" if uint8 else "float32 (B, 3, R, R) in [-1, 1]",
        "fingerprint": fingerprint(generator),
    }
    print(f"{out}: exporting", file=sys.stderr)
    program = trace(generator, uint8)
    result: dict[str, Any] = {"file": str(out), "format": FORMATS[out.suffix], "fingerprint": about["fingerprint"]}
    with atomic_file(out) as temporary:
        if onnx:
            result["opset"] = opset or OPSET
            write_onnx(program, temporary, about, result["opset"])
        else:
            write_program(program, temporary, about)
        result["bytes"] = temporary.stat().st_size
        if check or speed:
            draw = open_onnx(temporary) if onnx else open_program(temporary)
            if check:
                result |= check_images(out, draw, generator, uint8)
            if speed:
                result |= speed_of(draw, generator)
    print(json.dumps(result) if as_json else describe(result))


def describe(result: dict[str, Any]) -> str:
    """What was exported, as text."""
    kind = f"ONNX, opset {result['opset']}" if "opset" in result else "torch.export program"
    lines = [f"{result['file']}: {kind}, {result['bytes'] / 2**20:.1f} MiB"]
    if "largest_difference" in result:
        largest, mean = result["largest_difference"], result["mean_difference"]
        lines.append(f"differs from the generator's images by at most {largest:.2g}/255, by {mean:.1g}/255 on average")
    if "ratio_speed" in result:
        file, sampling = result["images_per_second_file"], result["images_per_second_sampling"]
        lines.append(
            f"{file:.3g} images/s, `sagan sample` {sampling:.3g} images/s (one thread each): "
            f"{result['ratio_speed']:.2f} times as fast"
        )
    return "\n".join(lines)


class Exported(nn.Module):
    """z (B, z_dim), labels (B,) int64 if there are classes -> float (B, 3, R, R) in [-1, 1], or with `uint8` the bytes
    (B, R, R, 3) of `to_uint8`."""

    def __init__(self, generator: Generator, uint8: bool):
        super().__init__()
        self.generator, self.uint8 = folded(generator), uint8

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images = self.generator(z, labels)
        return to_uint8(images) if self.uint8 else images


def folded(generator: Generator) -> Generator:
    """A copy with a transposed convolution of folded weight for each up-sampling one; it computes the same."""
    generator = copy.deepcopy(generator)
    for name, module in list(generator.named_modules()):
        if isinstance(module, UpsampleConv2d):
            parent, _, attribute = name.rpartition(".")
            setattr(generator.get_submodule(parent), attribute, fold_upsampling(module))
    return generator.eval()


def trace(generator: Generator, uint8: bool) -> ExportedProgram:
    """The program of an exported file, for any batch size. `generator`: as a snapshot gives it, on the CPU.

    Tracing is strict: otherwise `len(x)` of a tensor would fix the batch size.
    """
    z, labels = torch.zeros(2, generator.z_dim), torch.zeros(2, dtype=torch.long)
    inputs = (z, labels) if generator.num_classes else (z,)
    batch = Dim("batch")
    network = Exported(generator, uint8).eval()
    return torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=True)


def write_program(program: ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Write a .pt2, `about` as the extra file `sagan.json`."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in TRACED_AT:
                    node.meta.pop(key, None)
    buffer = io.BytesIO()  # torch would store the name of a path
    extra = {ABOUT: json.dumps(about, ensure_ascii=False, sort_keys=True)}
    torch.export.save(program, buffer, extra_files=extra)
    path.write_bytes(buffer.getbuffer())


def write_onnx(program: ExportedProgram, path: Path, about: Mapping[str, str], opset: int) -> None:
    """Write ONNX, inputs `z` and `labels`, output `images`, `about` as its metadata, all weights inside.

    UserError for operators or an opset that this torch cannot write, and for weights that one file cannot hold.
    """
    size = sum(weight.numel() * weight.element_size() for weight in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise UserError(f"weights of {size / 2**30:.1f} GiB: an ONNX file holds 2; write a .pt2 file")
    names = ["z", "labels"][: len(program.graph_signature.user_inputs)]
    program = program.run_decompositions({torch.ops.aten.searchsorted.Tensor: _count_below})
    try:
        with redirect_stdout(sys.stderr):  # older rewriters print what they did
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=names, output_names=["images"], verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"torch {torch.__version__} cannot write this generator as ONNX ({reason}); write a .pt2 file"
        ) from None
    assert exported is not None
    model = exported.model_proto
    if [found.version for found in model.opset_import if not found.domain] != [opset]:
        raise UserError(f"--opset {opset}: torch {torch.__version__} cannot write it; leave it out for 18")
    _tidy(model, about)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _count_below(ascending: Tensor, values: Tensor) -> Tensor:
    """searchsorted, which ONNX lacks, as non_local uses it: how many of (…, M) lie below each of (…, N)."""
    return (ascending[..., None, :] < values[..., None]).sum(dim=-1)


def _tidy(model: "ModelProto", about: Mapping[str, str]) -> None:
    """Remove traces of the machine and the tracing, name the batch dimension, and add the metadata."""
    assert not model.functions
    model.producer_name, model.producer_version = about["project"], about["version"]
    for graph in _graphs(model.graph):
        del graph.metadata_props[:], graph.value_info[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            del part.metadata_props[:]
            part.doc_string = ""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"
    for key, text in sorted(about.items()):
        model.metadata_props.add(key=key, value=text)


def _graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def open_onnx(path: Path) -> Draw:
    """Run the file with onnxruntime, on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        inputs = {"z": z.numpy()} if labels is None else {"z": z.numpy(), "labels": labels.numpy()}
        return torch.from_numpy(session.run(["images"], inputs)[0])

    return draw


def open_program(path: Path) -> Draw:
    """Run the file with torch. Only for files that this process wrote: they may hold pickles."""
    module = torch.export.load(path).module()

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        return module(z) if labels is None else module(z, labels)

    return draw


def check_images(out: Path, draw: Draw, generator: Generator, uint8: bool) -> dict[str, float]:
    """How far the file's images differ from the generator's, in gray levels; UserError beyond ALLOWED."""
    largest, mean = difference(draw, generator, uint8)
    if not (largest <= ALLOWED[uint8][0] and mean <= ALLOWED[uint8][1]):  # also where it is nan
        raise UserError(
            f"{out}: its images differ from the generator's by up to {largest:.3g}/255, {mean:.3g}/255 on average; "
            "nothing was written, another format or --opset may do"
        )
    return {"largest_difference": largest, "mean_difference": mean}


@torch.no_grad()
def difference(draw: Draw, generator: Generator, uint8: bool) -> tuple[float, float]:
    """Largest and mean difference of images that are generated in batches of each size in BATCHES, in gray levels."""
    seeds = range(max(BATCHES))
    z, labels = latents(seeds, generator.z_dim), default_labels(seeds, generator.num_classes)
    differences = []
    for size in BATCHES:
        of_batch = z[:size], None if labels is None else labels[:size]
        found, expected = draw(*of_batch), generator(*of_batch)
        expected = to_uint8(expected) if uint8 else expected
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (found.shape, found.dtype)
        differences.append((found.float() - expected.float()).abs().flatten() * (1 if uint8 else 127.5))
    every = torch.cat(differences)
    return every.max().item(), every.mean().item()


ROUNDS, IMAGES = 9, 2 * BATCH


def speed_of(draw: Draw, generator: Generator) -> dict[str, float]:
    """Median throughput (images/s) of the file and of `sagan sample`, and the median over rounds of their ratio."""
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)

    def of_file() -> None:
        for start in range(0, IMAGES, BATCH):
            rows = slice(start, start + BATCH)
            draw(z[rows], None if labels is None else labels[rows])

    def of_sampling() -> None:
        for _ in generate(generator, z, labels):
            pass

    seconds: list[tuple[float, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for i in track(range(ROUNDS + 1), ROUNDS + 1, "timing"):
                pair = _seconds(of_file), _seconds(of_sampling)
                seconds += [pair] if i else []  # the first round warms up
    finally:
        torch.set_num_threads(threads)
    return {
        "images_per_second_file": IMAGES / median(file for file, _ in seconds),
        "images_per_second_sampling": IMAGES / median(sampling for _, sampling in seconds),
        "ratio_speed": median(sampling / file for file, sampling in seconds),
    }


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

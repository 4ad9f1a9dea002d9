"""`sagan export`: write the generator as ONNX or as a torch.export program (.pt2), which run without this project.

Upsampling convolutions are exported as transposed convolutions with folded weights (layers/resampling.py), so the batch
size can be dynamic. Files are reproducible: source paths and other tracing metadata are removed.
"""

import copy
import io
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sagan.attention import attention_modules, record_attention
from sagan.attention.functional import Edit
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
    from onnx import ModelProto

Network = Callable[[Tensor, Tensor | None], Tensor]  # z (B, z_dim), labels (B,) -> images

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
OPSET = 18
BATCHES = (1, 5)  # batch sizes of the check; tracing uses another one
LARGEST_ONNX = 2**31 - 1  # bytes of one protobuf file
TRACING_METADATA = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
# allowed (maximum, mean) difference in gray levels, by `uint8`: rounding may change a few bytes by one level
TOLERANCE = {False: (0.1, 0.1), True: (1, 0.05)}
ROUNDS, IMAGES = 9, 2 * BATCH  # of the speed measurement


@click.command("export")
@click.argument("snapshot")
@click.option("--out", type=Place(), required=True, metavar="FILE", help="A .onnx or .pt2 file.")
@click.option("--format", "kind", type=click.Choice(["onnx", "torch"]), help="Default: by the ending of the file name.")
@click.option("--opset", type=click.IntRange(18, 25), help="ONNX opset version (default 18).")
@click.option("--uint8/--float", default=False, show_default="--float",
              help="Images as bytes (B, R, R, 3), or floats (B, 3, R, R) in [-1, 1].")  # fmt: skip
@click.option("--attention", is_flag=True, help="Also output the attention maps of all cells.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare images with the generator's.")
@click.option("--speed", is_flag=True, help="Time the file against `sagan sample`.")
@json_option
def export_cli(
    snapshot: str, out: Path, kind: str | None, opset: int | None, uint8: bool, attention: bool, check: bool,
    speed: bool, as_json: bool,
) -> None:  # fmt: skip
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
    about = describe_file(generator, uint8, attention)
    print(f"{out}: exporting", file=sys.stderr)
    program = trace(generator, uint8, attention)
    result: dict[str, Any] = {"file": str(out), "format": FORMATS[out.suffix], "fingerprint": about["fingerprint"]}
    with atomic_file(out) as temporary:
        if onnx:
            result["opset"] = opset or OPSET
            write_onnx(program, temporary, about, result["opset"])
        else:
            write_program(program, temporary, about)
        result["bytes"] = temporary.stat().st_size
        if check or speed:
            network = open_onnx(temporary) if onnx else open_program(temporary)
            result |= check_images(out, network, generator, uint8) if check else {}
            result |= measure_speed(network, generator) if speed else {}
    print(json.dumps(result) if as_json else describe(result))


def describe_file(generator: Generator, uint8: bool, attention: bool, edits: bool = False) -> dict[str, str]:
    """The metadata of a file, see `Exported`."""
    about = {
        "project": "sagan",
        "version": version("sagan"),
        "resolution": str(generator.resolution),
        "z_dim": str(generator.z_dim),
        "num_classes": str(generator.num_classes),
        "class_names": json.dumps(generator.class_names, ensure_ascii=False),
        "images": "uint8 (B, R, R, 3)" if uint8 else f"float32 (B, {generator.image_channels}, R, R) in [-1, 1]",
        "fingerprint": fingerprint(generator),
    }
    about |= {"attention": json.dumps(attention_kinds(generator))} if attention else {}
    return about | ({"edits": json.dumps(list(no_edits(generator)))} if edits else {})


@torch.no_grad()
def attention_kinds(generator: Generator) -> dict[str, str]:
    """The maps of a generator on the CPU: name -> kind, in the order of their outputs."""
    with record_attention(generator, torch.full((1, 2), 0.5)) as maps:
        generator(latents([0], generator.z_dim), default_labels([0], generator.num_classes))
    return {name: found.kind for name, found in maps.items()}


def no_edits(generator: Generator) -> dict[str, Tensor]:
    """The inputs of `edits` that change nothing: for each attention layer `gain.<layer>`, a factor of what it changes,
    float32 (), and, if it is editable, `cut.<layer>`, bool (N, M): the edges from query to key to cut."""
    edits = {}
    for name, module in attention_modules(generator).items():
        edits[f"gain.{name}"] = torch.ones(())
        if module.editable:
            edits[f"cut.{name}"] = torch.zeros([math.prod(size) for size in module.map_sizes], dtype=torch.bool)
    return edits


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
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
    """The generator with folded upsampling. Returns float (B, C, R, R) in [-1, 1], or with `uint8` bytes (B, R, R, 3).

    Inputs are z (B, z_dim) and, if there are classes, labels (B,) int64. With `attention`, returns a tuple: the images,
    then for each map of `record_attention` the weights of all cells (B, heads, N or 1, H', W'). With the input `edits`
    of `no_edits`, its layers are changed as by `sagan.inspection.intervention`, for all images and heads.
    """

    def __init__(self, generator: Generator, uint8: bool, attention: bool = False, edits: bool = False):
        super().__init__()
        self.attention = attention
        self.generator, self.uint8 = copy.deepcopy(generator).eval(), uint8
        for name, module in list(self.generator.named_modules()):
            if isinstance(module, UpsampleConv2d):
                parent, _, attribute = name.rpartition(".")
                setattr(self.generator.get_submodule(parent), attribute, fold_upsampling(module))
        self.layers = attention_modules(self.generator) if edits else {}
        self.edits: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            layer.register_forward_hook(partial(self._scaled, name))

    def _scaled(self, name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return inputs[0] + self.edits[f"gain.{name}"] * (output - inputs[0])

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, edits: dict[str, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        self.edits = edits or {}
        for name, layer in self.layers.items():
            if layer.editable:
                layer.edit = Edit(self.edits[f"cut.{name}"])
        if not self.attention:
            return self._images(z, labels)
        with record_attention(self.generator) as maps:
            images = self._images(z, labels)
        return images, *(found.weights.float() for found in maps.values())

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        images = self.generator(z, labels)
        return to_uint8(images) if self.uint8 else images


def trace(generator: Generator, uint8: bool, attention: bool = False, edits: bool = False) -> ExportedProgram:
    """Trace an `Exported` generator on the CPU for any batch size.

    Tracing is strict: otherwise `len(x)` of a tensor would fix the batch size.
    """
    z, labels = torch.zeros(2, generator.z_dim), torch.zeros(2, dtype=torch.long)
    inputs = (z, labels) if generator.num_classes else (z,)
    network, batch = Exported(generator, uint8, attention, edits).eval(), Dim("batch")
    shapes: dict[str, Any] = {name: {0: batch} for name, _ in zip(("z", "labels"), inputs, strict=False)}
    named = {"edits": no_edits(generator)} if edits else {}
    shapes |= {"edits": dict.fromkeys(named["edits"])} if edits else {}
    with warnings.catch_warnings():  # recorders and edits are attributes of modules
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects")
        return torch.export.export(network, inputs, named, dynamic_shapes=shapes, strict=True)


def write_program(program: ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Write a .pt2 file with `about` as the extra file `sagan.json`."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in TRACING_METADATA:
                    node.meta.pop(key, None)
    buffer = io.BytesIO()  # given a path, torch would store its name
    extra = {"sagan.json": json.dumps(about, ensure_ascii=False, sort_keys=True)}
    torch.export.save(program, buffer, extra_files=extra)
    path.write_bytes(buffer.getbuffer())


def write_onnx(program: ExportedProgram, path: Path, about: Mapping[str, str], opset: int) -> None:
    """Write an ONNX file with inputs z, labels and edits, outputs images and maps, and `about` as metadata.

    UserError for operators or an opset that this torch cannot export, and for weights above 2 GiB.
    """
    size = sum(weight.numel() * weight.element_size() for weight in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise UserError(f"weights of {size / 2**30:.1f} GiB: an ONNX file holds 2; write a .pt2 file")
    edits = json.loads(about.get("edits", "[]"))
    names = ["z", "labels"][: len(program.graph_signature.user_inputs) - len(edits)] + edits
    outputs = ["images", *json.loads(about.get("attention", "{}"))]
    program = program.run_decompositions({torch.ops.aten.searchsorted.Tensor: _count_below})
    try:
        with redirect_stdout(sys.stderr):  # older versions print messages
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=names, output_names=outputs, verbose=False
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
    _clean(model, about)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _count_below(ascending: Tensor, values: Tensor) -> Tensor:
    """searchsorted, which ONNX lacks, as used by non_local: how many of (…, M) lie below each of (…, N)."""
    return (ascending[..., None, :] < values[..., None]).sum(dim=-1)


def _clean(model: "ModelProto", about: Mapping[str, str]) -> None:
    """Remove tracing metadata, name the batch dimension, and add the metadata of the file."""
    assert not model.functions
    model.producer_name, model.producer_version = about["project"], about["version"]
    graphs = [model.graph]
    for graph in graphs:  # grows by the subgraphs
        del graph.metadata_props[:], graph.value_info[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            del part.metadata_props[:]
            part.doc_string = ""
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"
    for key, text in sorted(about.items()):
        model.metadata_props.add(key=key, value=text)


def open_onnx(path: Path) -> Network:
    """Load an ONNX file with onnxruntime, on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def network(z: Tensor, labels: Tensor | None) -> Tensor:
        inputs = {"z": z.numpy()} if labels is None else {"z": z.numpy(), "labels": labels.numpy()}
        return torch.from_numpy(session.run(["images"], inputs)[0])

    return network


def open_program(path: Path) -> Network:
    """Load a .pt2 file with torch. Only for files written by this process: they may hold pickles."""
    module = torch.export.load(path).module()

    def network(z: Tensor, labels: Tensor | None) -> Tensor:
        found = module(z) if labels is None else module(z, labels)
        return found[0] if isinstance(found, tuple) else found

    return network


@torch.no_grad()
def check_images(out: Path, network: Network, generator: Generator, uint8: bool) -> dict[str, float]:
    """Maximum and mean difference from the generator's images, in gray levels. UserError beyond TOLERANCE."""
    seeds = range(max(BATCHES))
    z, labels = latents(seeds, generator.z_dim), default_labels(seeds, generator.num_classes)
    differences = []
    for size in BATCHES:
        inputs = z[:size], None if labels is None else labels[:size]
        found, expected = network(*inputs), generator(*inputs)
        expected = to_uint8(expected) if uint8 else expected
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (found.shape, found.dtype)
        differences.append((found.float() - expected.float()).abs().flatten() * (1 if uint8 else 127.5))
    largest, mean = torch.cat(differences).max().item(), torch.cat(differences).mean().item()
    if not (largest <= TOLERANCE[uint8][0] and mean <= TOLERANCE[uint8][1]):  # also if it is nan
        raise UserError(
            f"{out}: its images differ from the generator's by up to {largest:.3g}/255, {mean:.3g}/255 on average; "
            "nothing was written; try another format or --opset"
        )
    return {"largest_difference": largest, "mean_difference": mean}


@torch.no_grad()
def measure_speed(network: Network, generator: Generator) -> dict[str, float]:
    """Median throughput (images/s) of the file and of `sagan sample`, and the median of their ratio per round."""
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)
    split_labels = [None] * IMAGES if labels is None else labels.split(BATCH)
    batches = list(zip(z.split(BATCH), split_labels, strict=False))
    seconds: list[tuple[float, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in track(range(ROUNDS + 1), ROUNDS + 1, "timing"):
            start = time.perf_counter()
            for inputs in batches:
                network(*inputs)
            middle = time.perf_counter()
            for _ in generate(generator, z, labels):
                pass
            seconds.append((middle - start, time.perf_counter() - middle))
    finally:
        torch.set_num_threads(threads)
    file, sampling = zip(*seconds[1:], strict=True)  # the first round is a warm-up
    return {
        "images_per_second_file": IMAGES / median(file),
        "images_per_second_sampling": IMAGES / median(sampling),
        "ratio_speed": median(s / f for f, s in seconds[1:]),
    }

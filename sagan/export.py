"""The generator as one file that runs without this project: ONNX, or a program of torch.export (.pt2).

In the file every up-sampling convolution is the transposed one that it equals (layers.py), its weight folded before:
nothing is left to choose by the batch, which is therefore free. Bytes are reproducible: what torch notes of where it
traced (paths, addresses) is removed.
"""

import copy
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sagan.errors import UserError
from sagan.images import to_uint8
from sagan.layers import UpsampleConv2d, folded_once
from sagan.networks import Generator

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

Draw = Callable[[Tensor, Tensor | None], Tensor]  # z (B, z_dim), labels (B,) -> images

BATCHES = (1, 5)  # other than the one that is traced
LARGEST_ONNX = 2**31 - 1  # bytes of one protobuf file
ABOUT = "sagan.json"  # in a .pt2
TRACED_AT = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


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
    """A copy that computes the same, each up-sampling convolution replaced by a transposed one of folded weight."""
    generator = copy.deepcopy(generator)
    for name, module in list(generator.named_modules()):
        if isinstance(module, UpsampleConv2d):
            parent, _, attribute = name.rpartition(".")
            setattr(generator.get_submodule(parent), attribute, folded_once(module))
    return generator.eval()


def trace(generator: Generator, uint8: bool) -> ExportedProgram:
    """The program that an exported file holds, of any batch. `generator`: as a snapshot gives it, on the CPU.

    Strictly traced: otherwise `len(x)` of a tensor would bind the program to the batch at hand.
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
    buffer = io.BytesIO()  # of a path torch would note the name
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
        with redirect_stdout(sys.stderr):  # older rewriters tell what they did; stdout is for our answer
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
    """searchsorted, of which ONNX has none, as non_local uses it: how many of (…, M) lie below each of (…, N)."""
    return (ascending[..., None, :] < values[..., None]).sum(dim=-1)


def _tidy(model: "ModelProto", about: Mapping[str, str]) -> None:
    """Remove what tells of the machine and the tracing, name the batch, and say what this is."""
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
    """The file as onnxruntime computes it, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        inputs = {"z": z.numpy()} if labels is None else {"z": z.numpy(), "labels": labels.numpy()}
        return torch.from_numpy(session.run(["images"], inputs)[0])

    return draw


def open_program(path: Path) -> Draw:
    """The file as torch computes it. It may hold pickles: for files that this process wrote."""
    module = torch.export.load(path).module()

    def draw(z: Tensor, labels: Tensor | None) -> Tensor:
        return module(z) if labels is None else module(z, labels)

    return draw


@dataclass(frozen=True)
class Difference:
    """Of a file's images from the generator's, in grey levels of 255."""

    largest: float
    mean: float


# of floats, and of bytes: a level that lies on the edge may fall either way, but seldom
ALLOWED = {False: Difference(0.1, 0.1), True: Difference(1, 0.05)}


@torch.no_grad()
def difference(draw: Draw, generator: Generator, z: Tensor, labels: Tensor | None, uint8: bool) -> Difference:
    """How far images of z (N, z_dim), N = max(BATCHES), drawn in batches of each size, differ from the generator's."""
    differences = []
    for size in BATCHES:
        of_batch = z[:size], None if labels is None else labels[:size]
        found, expected = draw(*of_batch), generator(*of_batch)
        expected = to_uint8(expected) if uint8 else expected
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (found.shape, found.dtype)
        differences.append((found.float() - expected.float()).abs().flatten() * (1 if uint8 else 127.5))
    every = torch.cat(differences)
    return Difference(every.max().item(), every.mean().item())

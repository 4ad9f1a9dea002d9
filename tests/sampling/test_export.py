"""`sagan export`: the contents of the files, their images, and the errors."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import sagan
from small_generator import NAMES, small_generator
from torch import Tensor, nn

from sagan.attention import ATTENTION, record_attention
from sagan.layers.resampling import UpsampleConv2d
from sagan.models.generator import Generator
from sagan.runs.snapshot import fingerprint, load_snapshot, save_snapshot
from sagan.sampling import export
from sagan.sampling.export import export_cli
from sagan.sampling.sampler import default_labels, latents
from sagan.sampling.writer import sample_cli
from sagan.utils.errors import UserError
from sagan.utils.images import read_png, to_uint8

ROOT = Path(__file__).parents[2]
FORMS = {
    "non_local": ("form: concatenation", "form: dot_product", "form: gaussian, scale: true", "pool: before"),
    "em_attention": ("gradient: detached",),
    "dual_attention": ("form: position", "form: channel"),
    "augmented_conv": ("relative: false",),
    "transformer": ("position: sincos",),
    "selective_kernel": ("paths: 3",),
    "spatial_transformer": ("transform: similarity, padding: zeros",),
}
PLACED = [
    *((name, f"name: {name}, place: {place}") for name in ATTENTION for place in ATTENTION[name].places),
    *((name, f"name: {name}, {options}") for name, forms in FORMS.items() for options in forms),
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("snapshot") / "snapshot"
    save_snapshot(small_generator(channels=2), folder)
    return str(folder)


@pytest.fixture(scope="module")
def exported(snapshot: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generator.onnx (floats) and generator.pt2 (bytes)."""
    folder = tmp_path_factory.mktemp("exported")
    export_to(folder / "generator.onnx", snapshot)
    export_to(folder / "generator.pt2", snapshot, "--uint8")
    return folder


def export_to(out: Path, source: str | Path, *options: str) -> None:
    export_cli([str(source), "--out", str(out), *options], standalone_mode=False)


def inputs_of(generator: Generator, count: int) -> tuple[Tensor, Tensor | None]:
    return latents(range(count), generator.z_dim), default_labels(range(count), generator.num_classes)


def run_onnx(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == [*inputs]
    return np.asarray(session.run(["images"], inputs)[0])


def test_inputs_outputs_and_metadata_of_an_onnx_file(snapshot: str, exported: Path):
    model, generator = onnx.load(exported / "generator.onnx"), load_snapshot(snapshot)
    onnx.checker.check_model(model, full_check=True)

    def shapes(values: Iterable) -> dict:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(model.graph.input) == {"z": ["batch", 128], "labels": ["batch"]}
    assert shapes(model.graph.output) == {"images": ["batch", 3, 32, 32]}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about.pop("version")
    assert json.loads(about.pop("class_names")) == list(NAMES)
    assert about == {
        "project": "sagan", "resolution": "32", "z_dim": "128", "num_classes": "4",
        "images": "float32 (B, 3, R, R) in [-1, 1]", "fingerprint": fingerprint(generator),
    }  # fmt: skip
    assert [node.op_type for node in model.graph.node].count("ConvTranspose") == len(generator.blocks) == 3
    assert {file.name for file in exported.iterdir()} == {"generator.onnx", "generator.pt2"}  # no external weights


def test_files_need_no_project_and_generate_the_same_images_at_any_batch_size(
    snapshot: str, exported: Path, monkeypatch: pytest.MonkeyPatch
):
    generator = load_snapshot(snapshot)
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "sagan"]:
            patch.setitem(sys.modules, name, None)
        about = {"sagan.json": ""}
        program = torch.export.load(exported / "generator.pt2", extra_files=about).module()
    about = json.loads(about["sagan.json"])
    assert (about["fingerprint"], about["images"]) == (fingerprint(generator), "uint8 (B, R, R, 3)")
    for count in (1, 2, 9):
        z, labels = inputs_of(generator, count)
        assert labels is not None
        expected = generator(z, labels)
        floats = run_onnx(exported / "generator.onnx", z=z.numpy(), labels=labels.numpy())
        np.testing.assert_allclose(floats, expected.numpy(), rtol=0, atol=1e-5)
        difference = (program(z, labels).int() - to_uint8(expected).int()).abs()
        assert difference.shape == (count, 32, 32, 3)
        assert difference.max() <= 1
        assert difference.double().mean() < 0.01


def test_files_hold_no_paths_and_no_source_lines(exported: Path):
    for path in exported.iterdir():
        for trace in (str(ROOT), "site-packages", str(exported), "generator.py"):
            assert trace.encode() not in path.read_bytes()


@pytest.mark.slow
def test_bytes_are_reproducible_in_another_process_and_folder(snapshot: str, exported: Path, tmp_path: Path):
    code = (
        "import sys\nfrom sagan.sampling.export import export_cli\n"
        "export_cli([sys.argv[1], '--out', 'b/other.onnx', '--no-check'], standalone_mode=False)\n"
        "export_cli([sys.argv[1], '--out', 'b/other.pt2', '--uint8', '--no-check'], standalone_mode=False)\n"
    )
    subprocess.run([sys.executable, "-c", code, snapshot], check=True, cwd=tmp_path, capture_output=True)
    for kind in ("onnx", "pt2"):
        content = (exported / f"generator.{kind}").read_bytes()
        assert (tmp_path / "b" / f"other.{kind}").read_bytes() == content


def test_the_documented_code_needs_no_torch_and_gives_the_samples(snapshot: str, exported: Path, tmp_path: Path):
    code = re.findall("```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[0]
    code += f"np.savez({str(tmp_path / 'found.npz')!r}, z=inputs['z'], images=images, names=names)\n"
    code = "import sys\nsys.modules['sagan'] = sys.modules['torch'] = None\n" + code
    subprocess.run([sys.executable, "-c", code], check=True, cwd=exported)
    sample_cli([snapshot, "--out", str(tmp_path / "samples"), "--num", "8", "--device", "cpu"], standalone_mode=False)
    expected = np.stack([read_png(path) for path in sorted((tmp_path / "samples").glob("seed*.png"))])
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["z"], latents(range(8), 128).numpy(), rtol=1e-6)
        difference = np.abs(found["images"].astype(int) - expected)
        assert found["names"].tolist() == list(NAMES)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.slow
def test_without_classes_as_bytes_with_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_snapshot(small_generator(num_classes=0, channels=2), tmp_path / "snapshot")
    out = tmp_path / "generator.onnx"
    assert sagan("export", tmp_path / "snapshot", "--out", out, "--uint8", "--opset", 20, "--speed", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["opset"] == onnx.load(out).opset_import[0].version == 20
    assert report["bytes"] == out.stat().st_size
    assert 0 <= report["mean_difference"] <= report["largest_difference"] <= 1
    assert 0.01 < report["ratio_speed"] < 100
    z = latents(range(3), 128)
    images = run_onnx(out, z=z.numpy())
    assert images.dtype == np.uint8
    expected = to_uint8(load_snapshot(tmp_path / "snapshot")(z, None)).numpy()
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_folding_changes_neither_the_images_nor_the_original():
    generator = small_generator("generator.class_norm=linear").double()
    before = fingerprint(generator)
    z, labels = inputs_of(generator, 2)
    folded = export.Exported(generator, uint8=False)
    assert not any(isinstance(module, UpsampleConv2d) for module in folded.modules())
    torch.testing.assert_close(folded(z.double(), labels), generator(z.double(), labels), rtol=0, atol=1e-12)
    assert sum(isinstance(module, UpsampleConv2d) for module in generator.modules()) == 3
    assert fingerprint(generator) == before


def test_attention_outputs_are_the_recorded_maps_of_all_cells(tmp_path: Path):
    generator = small_generator("generator.attention={8: gated_positional, 16: self_attention}", channels=4)
    save_snapshot(generator, tmp_path / "snapshot")
    export_to(tmp_path / "g.onnx", tmp_path / "snapshot", "--attention", "--uint8")
    export_to(tmp_path / "g.pt2", tmp_path / "snapshot", "--attention")
    z, labels = inputs_of(generator, 3)
    assert labels is not None
    with record_attention(generator) as maps:
        generator(z, labels)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx")
    names = [value.name for value in session.get_outputs()]
    assert names == ["images", *maps]
    kinds = json.loads(session.get_modelmeta().custom_metadata_map["attention"])
    assert kinds == {name: found.kind for name, found in maps.items()}
    assert len(kinds) == 5
    outputs = session.run(names, {"z": z.numpy(), "labels": labels.numpy()})[1:]
    program = torch.export.load(tmp_path / "g.pt2").module()(z, labels)[1:]
    for name, onnx_map, torch_map in zip(maps, outputs, program, strict=True):
        np.testing.assert_allclose(onnx_map, maps[name].weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch_map, maps[name].weights, rtol=0, atol=1e-5)
    assert maps["attention.16x16"].weights.shape == (3, 1, 256, 8, 8)
    assert maps["attention.16x16"].weights.std() > 1e-4


@pytest.mark.parametrize("uint8", [False, True])
def test_a_difference_of_one_gray_level_is_refused(uint8: bool, tmp_path: Path):
    generator = small_generator(channels=2)

    def off_by(levels: float) -> export.Network:
        def network(z: Tensor, labels: Tensor | None) -> Tensor:
            images = (generator(z, labels) + levels / 127.5).clamp(-1, 1)
            return to_uint8(images) if uint8 else images

        return network

    same = export.check_images(tmp_path, off_by(0), generator, uint8)
    assert same == {"largest_difference": 0, "mean_difference": 0}
    for levels in (1, 30, torch.nan):
        with pytest.raises(UserError, match="images differ"):
            export.check_images(tmp_path, off_by(levels), generator, uint8)


def test_a_failed_check_keeps_the_existing_file(tmp_path: Path):
    generator = small_generator(channels=2)
    with torch.no_grad():
        generator.linear.weight.fill_(3e38)
    save_snapshot(generator, tmp_path / "snapshot")
    (tmp_path / "out.pt2").write_text("before")
    with pytest.raises(UserError, match="nan/255"):
        export_to(tmp_path / "out.pt2", tmp_path / "snapshot")
    assert (tmp_path / "out.pt2").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot", "out.pt2"}


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 << 28, device="meta"))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.weight[0]


class Bessel(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.special.bessel_j0(z)


@pytest.mark.parametrize(("network", "device", "message"), [
    (Large, "meta", r"weights of 3\.0 GiB: an ONNX file holds 2"),
    (Bessel, "cpu", r"cannot write this generator as ONNX \(.*bessel_j0.*\)"),
])  # fmt: skip
def test_what_onnx_cannot_hold(network: type[nn.Module], device: str, message: str, tmp_path: Path):
    program = torch.export.export(network(), (torch.zeros(2, 3, device=device),))
    with pytest.raises(UserError, match=message):
        export.write_onnx(program, tmp_path / "g.onnx", {}, 18)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_only_where_they_are_needed(
    snapshot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="ONNX needs onnxruntime, not installed here"):
        export_to(tmp_path / "generator.onnx", snapshot)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs onnx and onnxscript, not"):
        export_to(tmp_path / "generator.onnx", snapshot, "--no-check")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), PLACED, ids=lambda text: text.replace(" ", ""))
def test_every_mechanism_can_be_exported(name: str, settings: str, tmp_path: Path):
    generator = small_generator(f"generator.attention={{16: {{{settings}}}}}", channels=4)
    for module in generator.modules():
        for gain in module.gains().values() if type(module) is ATTENTION[name] else []:
            gain.data.fill_(0.7)
    program = export.trace(generator, uint8=False, attention=True)
    export.write_program(program, tmp_path / "g.pt2", {})
    export.write_onnx(program, tmp_path / "g.onnx", export.describe_file(generator, False, True), 18)
    for network in (export.open_program(tmp_path / "g.pt2"), export.open_onnx(tmp_path / "g.onnx")):
        difference = export.check_images(tmp_path, network, generator, uint8=False)
        assert difference["largest_difference"] < 0.01

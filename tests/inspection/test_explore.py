"""`sagan explore`: the network with edits, the content of the page, and the refusals. The browser tests open it."""

import io
import json
import re
import tarfile
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import sagan
from page_case import HOSTILE
from small_generator import small_generator

from sagan.inspection import explore
from sagan.inspection.intervention import Change, intervene
from sagan.models.generator import Generator
from sagan.runs.snapshot import save_snapshot
from sagan.sampling.export import no_edits
from sagan.sampling.sampler import default_labels, latents
from sagan.utils.errors import UserError
from sagan.utils.images import to_uint8
from sagan.utils.io import sha256

MIXED = "generator.attention={8: gated_positional, 16: self_attention, 32: {name: augmented_conv, pool: true}}"


@pytest.fixture(scope="module")
def mixed() -> Generator:
    generator = small_generator(MIXED, channels=4)
    for name, parameter in generator.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(0.7)
    return generator


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the folder of onnxruntime-web, with the digests of its files."""
    content = {explore.CODE: b"var a={b:import.meta.url};export{a as env};\n//# map\n", explore.WASM: b"\0asm"}
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    for name, part in content.items():
        (folder / name).write_bytes(part)
        monkeypatch.setitem(explore.RUNTIME, name, explore.hashlib.sha256(part).hexdigest())
    return tmp_path / "package"


@pytest.mark.slow
def test_the_inputs_of_the_network_change_its_layers_as_interventions_do(mixed: Generator):
    session = onnxruntime.InferenceSession(explore.network_file(mixed))
    z, labels = latents([3], mixed.z_dim), default_labels([3], mixed.num_classes)
    assert labels is not None
    edits = {name: value.numpy() for name, value in no_edits(mixed).items()}
    assert [value.name for value in session.get_inputs()] == ["z", "labels", *edits]

    def run(**changed: np.ndarray) -> np.ndarray:
        feeds = {"z": z.numpy(), "labels": labels.numpy(), **edits, **changed}
        return np.asarray(session.run(["images"], feeds)[0]).astype(int)

    cuts = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0)) < 0.5
    cuts[:, 5] = True  # a query that keeps no edge
    changes = {
        "attention.8x8": Change(gain=2.0),
        "attention.16x16": Change(cut=cuts[0, :, :64]),
        "attention.32x32": Change(cut=cuts[1], gain=0.5),
    }
    inputs = {
        "gain.attention.8x8": np.array(2, np.float32),
        "cut.attention.16x16": cuts[0, :, :64].numpy(),
        "cut.attention.32x32": cuts[1].numpy(),
        "gain.attention.32x32": np.array(0.5, np.float32),
    }
    plain = to_uint8(mixed(z, labels)).numpy()
    assert np.abs(run() - plain).max() <= 1
    with torch.no_grad(), intervene(mixed, changes):
        expected = to_uint8(mixed(z, labels)).numpy()
    assert np.abs(run(**inputs) - expected).max() <= 1
    assert np.abs(expected.astype(int) - plain).max() > 5


def test_the_content_of_the_page_names_layers_and_what_can_be_changed(mixed: Generator):
    content = explore.page_content(mixed)
    layers = {layer["name"]: layer for layer in content["layers"]}
    assert [*layers] == [
        *(f"attention.8x8/{name}" for name in ("attention", "content", "position")),
        "attention.16x16",
        "attention.32x32",
    ]
    pooled = layers["attention.16x16"]
    assert (tuple(pooled["size"]), pooled["keys"], pooled["heads"], pooled["scale"]) == ((16, 16), (8, 8), 1, "share")
    assert pooled["gamma"] == pytest.approx(0.7)
    assert {m["name"]: (m["queries"], m["keys"]) for m in content["modules"]} == {
        "attention.8x8": (None, None),
        "attention.16x16": ((16, 16), (8, 8)),
        "attention.32x32": ((16, 16), (16, 16)),
    }
    assert content["tails"][6] == (0.7, pytest.approx(0.24196365222307303, abs=1e-15))


@pytest.mark.parametrize("folder", [False, True])
def test_a_page_contains_everything_and_equal_arguments_give_equal_bytes(
    mixed: Generator, runtime: Path, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    network = bytes(range(256))
    monkeypatch.setattr(explore, "network_file", lambda generator: network)  # exporting takes long
    mixed.class_names = ("disc", "ring", HOSTILE, "bar")
    save_snapshot(mixed, tmp_path / "snapshot")
    out = tmp_path / ("site" if folder else "page.html")
    options = ["--folder"] if folder else []
    pages = []
    for _ in range(2):
        assert sagan("explore", tmp_path / "snapshot", "--out", out, "--runtime", runtime, "--json", *options) == 0
        report = json.loads(capsys.readouterr().out)
        pages.append({path.name: path.read_bytes() for path in (out.iterdir() if folder else [out])})
    assert pages[0] == pages[1]
    assert report["bytes"] == sum(map(len, pages[0].values()))
    assert report["layers"][-1] == "attention.32x32"
    text = pages[0]["index.html" if folder else "page.html"].decode()
    assert HOSTILE not in text
    parts = dict(re.findall('<script type="text/plain" id="(.*?)">(.*?)</script>', text))
    if folder:
        assert {*pages[0]} == {"index.html", "README.md", *explore.FILES.values()}
        assert pages[0]["README.md"].startswith(b"---\ntitle: ")
        assert b"sdk: static" in pages[0]["README.md"]
        worker, model = (pages[0][explore.FILES[name]] for name in ("worker", "model"))
    else:
        assert {*parts} == {"worker", "wasm", "model"}
        worker, model = (zlib.decompress(b64decode(parts[name])) for name in ("worker", "model"))
        assert "connect-src 'none'" in text
    assert b'var a={b:"https://localhost/"};const ort = { env: a };' in worker
    assert model == network


@pytest.mark.slow
def test_a_generator_without_attention_has_a_page(runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_snapshot(small_generator("generator.attention={}", channels=2), tmp_path / "snapshot")
    assert sagan("explore", tmp_path / "snapshot", "--out", tmp_path / "p.html", "--runtime", runtime) == 0
    assert "has no attention to show" in capsys.readouterr().out
    assert "This generator has no attention." in (tmp_path / "p.html").read_text()


def test_what_is_too_large_for_a_page_is_refused(mixed: Generator, monkeypatch: pytest.MonkeyPatch):
    layers = explore.page_content(mixed)["layers"]
    monkeypatch.setattr(explore, "LARGEST", {False: 0.1, True: 0.2})
    message = r"weights of this generator take \d+ MB, a page holds 0.1 MB; with --folder 0.2 MB"
    with pytest.raises(UserError, match=message):
        explore.check_size(mixed, layers, False)
    monkeypatch.setattr(explore, "LARGEST", {False: 64, True: 256})
    explore.check_size(mixed, layers, False)
    large = {**layers[0], "name": "attention.128x128", "size": (128, 128), "keys": (64, 64)}
    with pytest.raises(
        UserError, match=r"attention.128x128: all rows of its map are \d+ million weights, a page holds"
    ):
        explore.check_size(mixed, [large], False)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out", "page.txt"], "name an .html file, or give --folder"),
    (["--out", "page.html", "--runtime", "nowhere"], "nowhere: no such"),
])  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_snapshot(small_generator(channels=2), tmp_path / "snapshot")
    assert sagan("explore", tmp_path / "snapshot", *arguments) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot"}


def test_the_runtime_must_be_the_pinned_version(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = explore.read_runtime(runtime)
    assert explore.read_runtime(runtime / "dist") == expected
    archive = tmp_path / "onnxruntime-web.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name, part in expected.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(part)
            file.addfile(entry, io.BytesIO(part))
    package = explore.Pretrained(explore.PACKAGE.url, sha256(archive))
    with monkeypatch.context() as patch:
        patch.setattr(explore, "PACKAGE", package)
        assert explore.read_runtime(archive) == expected
    monkeypatch.setattr(explore.tarfile, "open", None)  # another archive is not even opened
    with pytest.raises(UserError, match="is not the package of onnxruntime-web"):
        explore.read_runtime(archive)
    (runtime / "dist" / explore.WASM).write_bytes(b"another")
    with pytest.raises(UserError, match=f"{explore.WASM} is not that of onnxruntime-web"):
        explore.read_runtime(runtime)
    (runtime / "dist" / explore.WASM).unlink()
    with pytest.raises(UserError, match=f"{explore.WASM} is missing"):
        explore.read_runtime(runtime)

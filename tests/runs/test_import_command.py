"""`sagan import`: what it writes works with the other commands, and what it cannot read is one message."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from command_line import sagan
from standin import register_standin
from test_importers import ASSUMED, KEPT, unpacked
from torch import Tensor

from sagan.data.labels import CIFAR10_CLASSES
from sagan.models.generator import Generator
from sagan.models.inference import fuse_for_inference
from sagan.runs.checkpoint import load_discriminator, load_generators
from sagan.runs.snapshot import load_snapshot
from sagan.utils.io import sha256

NAMES = ("circle", "square", "triangle")


@pytest.fixture
def biggan(tmp_path: Path) -> Path:
    return unpacked("biggan-pytorch-sagan", tmp_path)


@pytest.fixture
def run(biggan: Path, tmp_path: Path) -> Path:
    """An imported run with class names."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    names = ("--class-names", tmp_path / "names.txt")
    assert sagan("import", biggan, "--discriminator", biggan, "--out", tmp_path / "run", *names) == 0
    return tmp_path / "run"


def assert_images(generator: Generator, folder: Path) -> None:
    expected = torch.load(folder / "expected.pt", weights_only=True)
    images = generator(expected["z"].float(), expected["labels"])
    torch.testing.assert_close(images[..., ::7, ::5].double(), expected["pixels"], rtol=0, atol=1e-4)


def test_a_snapshot_records_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = unpacked("studiogan-sagan", tmp_path), tmp_path / "snapshot"
    assert sagan("import", folder, "--out", out, "--classes", 3, "--resolution", 32) == 0
    said = capsys.readouterr().out
    file = next(folder.glob("model=G*"))
    assert f"{file.name}: generator of StudioGAN, averaged weights\n  32 px, 3 classes (linear), z 16, " in said
    assert "--assume norm_eps=0.0001 " in said
    generator = load_snapshot(out)
    assert_images(generator, folder)
    origin = json.loads((out / "config.json").read_text())["origin"]
    assert (origin["project"], origin["weights"]) == ("studiogan", "averaged")
    assert origin["sha256"] == sha256(file)
    assert origin["assumed"]["norm_eps"] == generator.settings.norm_eps == 1e-4


class Hub(BaseHTTPRequestHandler):
    """What the client asks of the Hub for a repository user/name, whose files are in `folder`."""

    folder: ClassVar[Path]

    def do_GET(self) -> None:
        file, content = self.folder / self.path.rpartition("/")[2], b""
        if self.path.startswith("/api/models/user/name/tree/main"):
            sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
            files = [{"type": "file", "path": name, "size": size, "oid": "1"} for name, size in sizes.items()]
            content = json.dumps(files).encode()
        elif self.path.startswith("/user/name/resolve/main/") and file.exists():
            content = file.read_bytes()
        self.send_response(200 if content else 404)
        for name, value in {"Content-Length": len(content), "ETag": '"1"', "X-Repo-Commit": "c" * 40}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_from_the_hub(biggan: Path, tmp_path: Path) -> None:
    """With the real client, and a server in place of the Hub: a repository, a file in it, and neither."""
    Hub.folder = biggan
    with ThreadingHTTPServer(("localhost", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {"HF_ENDPOINT": f"http://localhost:{server.server_port}", "HF_HOME": str(tmp_path)}
        results = []
        for source in ("user/name", "user/name/G_ema.pth", "user/name/H.pth", "user/other"):
            command = [sys.executable, "-m", "sagan", "import", source, "--out", tmp_path / source.replace("/", "-")]
            results.append(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True))
        server.shutdown()
    assert [done.returncode for done in results] == [0, 0, 2, 2], results
    assert_images(load_snapshot(tmp_path / "user-name"), biggan)
    assert_images(load_snapshot(tmp_path / "user-name-G_ema.pth"), biggan)
    for done in results[2:]:
        assert "no such file or folder, and not on the Hub" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_json(biggan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sagan("import", biggan, "--discriminator", biggan / "D.pth", "--out", tmp_path / "run", "--json") == 0
    generator, discriminator = json.loads(capsys.readouterr().out)
    assert (generator["role"], discriminator["role"]) == ("generator", "discriminator")
    assert (generator["channels"], discriminator["channels"]) == ([16, 16, 8, 4, 2], [2, 4, 8, 16, 32])
    assert 0 < generator["sigma_error"] < 1


def test_a_run_holds_both_networks(run: Path, biggan: Path) -> None:
    checkpoint = run / "checkpoints" / "00000000"
    assert_images(load_snapshot(run), biggan)
    assert load_generators(checkpoint)["raw"].class_names == NAMES
    expected = torch.load(biggan / "expected.pt", weights_only=True)
    images = load_snapshot(run)(expected["z"].float(), expected["labels"])
    logits = load_discriminator(checkpoint)(images, expected["labels"]).logits
    torch.testing.assert_close(logits.double(), expected["logits"], rtol=1e-3, atol=1e-3)


SLOW = [
    pytest.param(case, marks=pytest.mark.slow) for case in KEPT if case not in ("biggan-pytorch-sagan", "tfhub-biggan")
]


@pytest.mark.parametrize("case", ["biggan-pytorch-sagan", *SLOW])
def test_other_commands_use_the_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_CACHE", str(tmp_path / "cache"))
    theirs, run, data = unpacked(case, tmp_path), tmp_path / "run", tmp_path / "data"
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = ("import", theirs, "--discriminator", theirs, "--out", run, "--class-names", tmp_path / "names.txt")
    assert sagan(*words, *(word for pair in ASSUMED.get(case, {}).items() for word in assumption(*pair))) == 0
    assert sagan("sample", run, "--out", tmp_path / "images", "--num", 6) == 0
    for file in (tmp_path / "images").glob("seed*.png"):
        folder = tmp_path / "reals" / NAMES[int(file.stem[4:12]) % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    for network, options in (("generator", ["--html"]), ("discriminator", ["--images", tmp_path / "reals"])):
        if yaml.safe_load((run / "config.yaml").read_text()).get(network, {}).get("attention"):
            out = tmp_path / f"attention-{network}"
            assert sagan("attend", run, "--out", out, "--seeds", "0-2", "--network", network, *options) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    resolution = str(config["data"]["resolution"])
    assert sagan("prepare", tmp_path / "reals", "--out", data, "--resolution", resolution) == 0
    assert sagan("evaluate", run, "--reference", data, "--backbone", register_standin(), "--num", 4) == 0
    config["data"] |= {"source": str(data)}
    config["training"] |= {"steps": 5, "batch_size": 3, "device": "cpu", "trackers": []}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    tuned = tmp_path / "tuned"
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests, and below for later ones
    assert sagan("train", tmp_path / "c.yaml", "--out", tuned, "--init-from", run) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    old, new = (load_discriminator(next((folder / "checkpoints").iterdir())) for folder in (run, tuned))
    change = (old.head.linear.parametrizations.weight.original - new.head.linear.parametrizations.weight.original).abs()  # type: ignore[union-attr]
    assert 0 < change.max() < 0.01


def assumption(name: str, value: object) -> tuple[str, str]:
    return "--assume", f"{name}={str(value).lower()}"


@pytest.mark.slow
def test_bilinear_upsampling_in_other_forms_of_the_generator(tmp_path: Path) -> None:
    """A fused generator folds nearest upsampling only; an export computes the same, too (it checks that itself)."""
    folder, out = unpacked("mimicry-sagan", tmp_path), tmp_path / "snapshot"
    assert sagan("import", folder, "--discriminator", folder, "--out", out) == 0
    assert_images(fuse_for_inference(load_snapshot(out)), folder)
    assert sagan("export", out, "--out", tmp_path / "generator.pt2") == 0
    assert load_discriminator(out / "checkpoints" / "00000000").settings.narrow is False


def test_class_names(tmp_path: Path) -> None:
    folder = unpacked("tfhub-biggan", tmp_path)
    state = torch.load(folder / "biggan-32.pth", weights_only=True)
    cifar10 = (10, ("--class-names", "cifar10"), CIFAR10_CLASSES[:2])
    for classes, options, names in ((1000, (), ("tench", "goldfish")), cifar10):
        out = tmp_path / str(classes)
        torch.save(state | {"shared.weight": torch.randn(classes, 6)}, folder / "biggan-32.pth")
        assert sagan("import", folder, "--out", out, *options) == 0
        assert load_snapshot(out).class_names[:2] == names


def without(*names: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(names)}


DAMAGE: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    ("unknown", lambda s: {f"x{name}": tensor for name, tensor in s.items()}, "no known generator; it holds x"),
    (
        "another",
        lambda s: s | {"extra.weight": torch.ones(2)},
        "with tensors that have no equivalent here: extra.weight",
    ),
    ("half", without("output_layer.2", "blocks.3"), "with missing tensors"),
    ("no block", without("blocks.0.0.bn1.stored"), "with missing tensors: blocks.0.norm1.running_mean"),
    ("no vectors", without("linear.u0"), "for some weights, but not for linear.weight"),
    (
        "nan",
        lambda s: s | {"linear.bias": s["linear.bias"] * torch.nan},
        "linear.bias holds values that are not finite",
    ),
    (
        "integers",
        lambda s: s | {"linear.bias": s["linear.bias"].long()},
        "linear.bias holds values that are not finite",
    ),
    ("shape", lambda s: s | {"linear.weight": torch.ones(16, 10), "linear.u0": torch.ones(1, 16)}, "is not 4x4"),
    (
        "kernel",
        lambda s: s | {"output_layer.2.weight": torch.ones(3, 2, 5, 5)},
        "output_layer.2.weight has shape (3, 2, 5",
    ),
    ("flat", lambda s: s | {"linear.weight": torch.ones(256), "linear.u0": torch.ones(1, 256)}, "inconsistent shapes"),
    ("empty", lambda s: s | {"blocks.0.0.conv1.bias": torch.ones(0)}, "blocks.0.0.conv1.bias has shape (0,)"),
    ("vectors", lambda s: s | {"linear.u0": torch.ones(1, 3)}, "linear.u0 does not fit linear.weight"),
    ("zero", lambda s: s | {"linear.weight": 0 * s["linear.weight"]}, "it gives no positive singular value"),
    ("sums", lambda s: s | {"blocks.0.0.bn1.accumulation_counter": torch.ones(1)}, "accumulation_counter is not 0"),
    ("views", lambda s: s | {"linear.weight": torch.ones(1).expand(10**6, 10**6)}, "more than the file holds"),
    ("deep", lambda s: s | {"blocks.0.0.conv4.weight": torch.ones(1)}, "is a BigGAN-deep"),
    ("no tensors", lambda s: {"itr": 3, "config": {}}, "holds no state dict of a network"),
    ("nothing", lambda s: {}, "holds no state dict of a network"),
    ("code", lambda s: {"state_dict": s, "path": Path()}, "needs pathlib.PosixPath to be unpickled"),
]


def assert_refused(words: str, capsys: pytest.CaptureFixture[str], out: Path, *command: object) -> None:
    before = sorted(out.parent.iterdir())
    assert sagan("import", *command, "--out", out) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1
    assert sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE, ids=[name for name, *_ in DAMAGE])
def test_a_damaged_file_is_one_message(
    name: str, damage: Callable[[dict[str, Tensor]], Any], words: str, biggan: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    state = torch.load(biggan / "G_ema.pth", weights_only=True)
    torch.save(damage(state), biggan / "G_ema.pth")
    assert_refused(words, capsys, tmp_path / "out", biggan / "G_ema.pth")


def test_wrong_files_and_options_are_one_message(
    biggan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio, out = unpacked("studiogan-sagan", tmp_path), tmp_path / "out"
    g, d = biggan / "G_ema.pth", biggan / "D.pth"
    (tmp_path / "cut.pth").write_bytes(g.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("an error page")
    (tmp_path / "empty").mkdir()
    for words, *command in (
        ("is a discriminator of BigGAN-PyTorch, expected a generator; give it by --discriminator", d),
        ("is a generator of BigGAN-PyTorch, expected a discriminator; give it as FILE", g, "--discriminator", g),
        ("is a generator of BigGAN-PyTorch, not of studiogan", g, "--from", "studiogan"),
        ("of 64 px and 3 classes, expected 64 px and 5", g, "--classes", 5),
        ("of 64 px and 3 classes, expected 128 px and 3", g, "--resolution", 128),
        ("of 32 px and 3 classes, expected 64 px and 3", g, "--discriminator", studio),
        ("3 classes", g, "--class-names", "cifar10"),
        ("not a readable text file", g, "--class-names", tmp_path / "nope"),
        ("--assume x: expected NAME=VALUE", g, "--assume", "x"),
        ("--assume x: extra inputs are not permitted", g, "--assume", "x=1"),
        ("--assume norm_eps: input should be a valid number", g, "--assume", "norm_eps=small"),
        ("damaged, truncated, or not written by torch.save", tmp_path / "cut.pth"),
        ("damaged, truncated, or not written by torch.save", tmp_path / "text.pth"),
        ("nope.pth: cannot be read", tmp_path / "nope.pth"),
        ("holds no checkpoint of a generator", tmp_path / "empty"),
    ):
        assert_refused(words, capsys, out, *command)
    (out / "mine").mkdir(parents=True)
    assert sagan("import", g, "--out", out) == 2
    assert "is not empty" in capsys.readouterr().err

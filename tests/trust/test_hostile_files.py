"""Files made to hurt: bombs, lies in headers, wrong types. Each is one line, exit code 2, and nothing is written."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused
from safetensors.torch import load_file, save_file

from sagan.config.load import load_config
from sagan.data.sources import TorchvisionSource
from sagan.models.hub import read_snapshot
from sagan.utils.errors import UserError

LETTERS = list(pairwise("abcdefghi"))
YAML = {
    "a list that aliases multiply": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in LETTERS),
        "its aliases expand to over 50000 values",
    ),
    "mappings that aliases multiply": (
        "a: &a {x: 1}\n"
        + "".join(f"{b}: &{b} {{{', '.join(f'{i}: *{a}' for i in range(9))}}}\n" for a, b in LETTERS),
        "its aliases expand to over 50000 values",
    ),
    "merges that multiply": (
        "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{f'*{a}, ' * 9}]}}\n" for a, b in LETTERS),
        "its aliases expand to over 50000 values",
    ),
    "deep lists": ("a: " + "[" * 60 + "]" * 60, "nested more than 40 deep"),
    "very deep lists": ("a: " + "[" * 5000, "nested more than 40 deep"),
    "much text": ("# " + "x" * 300_000, "holds more than 256 KiB of text"),
    "many names": ("\n".join(f"a{i}: 1" for i in range(8000)), "unknown setting a0; known: seed"),
    "a long number": ("seed: " + "9" * 5000, "not readable as YAML"),
    "a long number as a name": ("'" + "9" * 5000 + "': 1", "not readable as YAML"),
    "a long value": ("training: {steps: " + "x" * 100_000 + "}", "training.steps: input should be a valid integer"),
    "a NUL": ("data: {source: \"a\\0b\"}", "data.source holds a NUL or half a character"),
    "a NUL in the file": ("seed: 1\0", "not readable as YAML"),
    "half a character": ('training: {init_from: "\\ud800"}', "training.init_from holds a NUL or half a character"),
    "an escape sequence": ('"\\e[2Jseed": 1', "unknown setting \\x1b[2Jseed"),
    "a name of two lines": ('"seed\\nfine": 1', "unknown setting seed\\nfine"),
    "an object": ("seed: !!python/object/apply:os.getpid []", "not readable as YAML"),
    "a name of Python's": ("seed: !!python/name:os.system", "not readable as YAML"),
    "a module": ("seed: !!python/module:os", "not readable as YAML"),
    "a tag that does not fit": ("seed: !!int [1]", "not readable as YAML"),
    "a set": ("!!set {seed}", "a config is a mapping of settings, this is a set"),
    "a name that is a list": ("? [a]\n: 1", "not readable as YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_hostile_configs(name: str, place: Path) -> None:
    text, says = YAML[name]
    Path("bad.yaml").write_text(text)
    started = time.monotonic()
    assert_refused("train bad.yaml --out out", says, place)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32"])
def test_other_encodings(encoding: str, place: Path) -> None:
    Path("bad.yaml").write_bytes("seed: 1  # für".encode(encoding))
    assert_refused("train bad.yaml --out out", "bad.yaml: not readable: ", place)


def test_aliases_still_serve(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "optim:\n  generator: &adam {lr: 0.01, betas: [0.5, 0.9]}\n  discriminator: {<<: *adam, lr: 0.02}\n"
    )
    optim = load_config(tmp_path / "a.yaml").optim
    assert (optim.generator.lr, optim.discriminator.lr, optim.discriminator.betas) == (0.01, 0.02, (0.5, 0.9))


def header(length: int, text: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + rest


def tensors(table: dict[str, Any], size: int) -> bytes:
    text = json.dumps(table).encode()
    return header(len(text), text, b"\0" * size)


F32 = {"dtype": "F32", "shape": [2]}
SAFETENSORS = {
    "a header of 2^63 bytes": header(1 << 63, b"{}"),
    "a header of 1 GiB": header(1 << 30, b"{}"),
    "a header that is no JSON": header(4, b"\xff\xff{}"),
    "a header that nests": header(100_000, b"[" * 100_000),
    "overlapping tensors": tensors({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [4, 12]}}, 12),
    "offsets behind the end": tensors({"a": F32 | {"data_offsets": [0, 8]}}, 4),
    "offsets that go back": tensors({"a": F32 | {"data_offsets": [8, 0]}}, 8),
    "a shape that does not fit": tensors({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 8]}}, 8),
    "a shape that overflows": tensors({"a": {"dtype": "F32", "shape": [1 << 40] * 4, "data_offsets": [0, 8]}}, 8),
    "an unknown type": tensors({"a": {"dtype": "X99", "shape": [2], "data_offsets": [0, 8]}}, 8),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors(name: str, place: Path) -> None:
    shutil.copytree("snapshot", "bad")
    try:
        Path("bad/model.safetensors").write_bytes(SAFETENSORS[name])
        assert_refused("sample bad --out out --num 2", "model.safetensors: missing, damaged, or not a saf", place)
    finally:
        shutil.rmtree("bad")


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "infinite": (lambda t: t["conv.bias"].fill_(float("inf")), "conv.bias holds values that are not finite"),
    "infinite as float32": (
        lambda t: t.update({"conv.bias": torch.full((3,), 1e300, dtype=torch.float64)}),
        "values that are not finite",
    ),
    "whole numbers": (
        lambda t: t.update({"conv.bias": t["conv.bias"].int()}),
        "conv.bias holds torch.int32 values, this network needs torch.float32",
    ),
    "complex": (lambda t: t.update({"conv.bias": t["conv.bias"] + 0j}), "conv.bias holds torch.complex64 values"),
    "truths": (lambda t: t.update({"conv.bias": t["conv.bias"] > 0}), "conv.bias holds torch.bool values"),
    "an odd name": (lambda t: t.update({"\x1b[2Ja": torch.zeros(1)}), "tensor \\x1b[2Ja is not part of this"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_another_kind(name: str, place: Path) -> None:
    change, says = TENSORS[name]
    shutil.copytree("snapshot", "bad")
    try:
        found = load_file("bad/model.safetensors")
        change(found)
        save_file(found, "bad/model.safetensors")
        assert_refused("sample bad --out out --num 2", says, place)
    finally:
        shutil.rmtree("bad")


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "terabytes": (lambda c: c["generator"].update(channels=10**9), "config.json: says 1000000000, its tensors hold"),
    "endless classes": (lambda c: c.update(num_classes=10**9, class_names=[]), "says 1000000000, its tensors hold"),
    "wide convolutions": (lambda c: c["generator"].update(channels=3000), "numbers, its tensors hold"),
    "a number of 400 digits": (lambda c: c["generator"].update(z_dim=10**400), "its tensors hold"),
    "names with escapes": (lambda c: c.update(class_names=["a", "b", "c", "\x1b]0;x\x07"]), "no list of printable"),
    "names with line ends": (lambda c: c.update(class_names=["a", "b", "c", "d\nfine"]), "no list of printable names"),
    "names that are text": (lambda c: c.update(class_names="abcd"), "no list of printable names"),
    "names that are numbers": (lambda c: c.update(class_names=[1, 2, 3, 4]), "no list of printable names"),
    "too many names": (lambda c: c.update(class_names=list("abcdefg")), "7 class_names for 4 classes"),
    "a long format": (lambda c: c.update(format="x" * 10**6), "not a snapshot of this project (format 'xxx"),
    "settings that are a list": (lambda c: c.update(generator=[1]), "does not describe a generator"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_snapshot_configs(name: str, place: Path) -> None:
    change, says = CONFIGS[name]
    shutil.copytree("snapshot", "bad")
    try:
        config = json.loads(Path("bad/config.json").read_text())
        change(config)
        Path("bad/config.json").write_text(json.dumps(config))
        assert_refused("sample bad --out out --num 2", says, place)
    finally:
        shutil.rmtree("bad")


@pytest.mark.parametrize(("text", "says"), [
    ("[" * 100_000, "not readable as JSON"), ("9" * 5000, "not readable as JSON"),
    ('{"a": \0}', "not readable as JSON"), ("\ufeff{}", "not readable as JSON"),
    ('"' + "x" * (1 << 24) + '"', "holds more than 16384 KiB of text"),
])  # fmt: skip
def test_hostile_json(text: str, says: str, place: Path) -> None:
    shutil.copytree("data", "bad")
    try:
        Path("bad/manifest.json").write_text(text)
        assert_refused("train c.yaml --out out --set data.source=bad", f"bad/manifest.json: {says}", place)
    finally:
        shutil.rmtree("bad")


@pytest.mark.parametrize(("change", "says"), [
    ({"source": "\x1b[2Jx"}, "'\\x1b[2Jx' is not printable"), ({"class_names": ["a", "b", "c", "\n"]}, "not printable"),
    ({"num_classes": 10**12}, "1000000000000 classes"), ({"count": 10**40}, "the manifest says"),
    ({"count": True}, "4 classes"), ({"class_counts": None}, "class_counts"),
    ({"resolution": -1}, "resolution"),
    ({"format": "x" * 10**6}, "its format is xxx"), ({"x" * 5000: 1}, "not a manifest of prepared data"),
])  # fmt: skip
def test_hostile_manifests(change: dict[str, Any], says: str, place: Path) -> None:
    shutil.copytree("data", "bad")
    try:
        manifest = json.loads(Path("bad/manifest.json").read_text())
        Path("bad/manifest.json").write_text(json.dumps(manifest | change))
        assert_refused("train c.yaml --out out --set data.source=bad", says, place)
    finally:
        shutil.rmtree("bad")


def test_lsun_leaves_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "_cache_x").write_bytes(b"")
    with pytest.raises(UserError, match="torchvision would unpickle this file"):
        len(TorchvisionSource("lsun"))
    (tmp_path / "_cache_x").unlink()
    with pytest.raises(UserError, match="could not find"):
        len(TorchvisionSource("lsun"))


def test_a_config_from_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"seed: 7\n")
    os.close(writing)
    assert load_config(f"/dev/fd/{reading}").seed == 7
    os.close(reading)


HUB_IDS = ["../x/y", "a/..", "a/../../b", "/etc/passwd", "a/b/c", "https://example.org/a/b", "a b/c", "a/b ", "a/b\n",
           "./nope/nope", "a/b?x", "a/" + "b" * 200, "\x1b[2J/x", "datasets/a/b", "a/b@main", "a--b/c",
           "ü/x"]  # fmt: skip


@pytest.mark.parametrize("name", HUB_IDS)
def test_what_is_no_hub_id_asks_nobody(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(UserError) as caught:
        read_snapshot(name)
    assert str(caught.value).isprintable()


def test_the_hub_gives_two_files(monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    import huggingface_hub

    asked = []

    def download(repository: str, name: str, **options: Any) -> str:
        asked.append((repository, name))
        return str(sound / "snapshot" / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    read_snapshot("somebody/their-model.1")
    assert asked == [("somebody/their-model.1", "config.json"), ("somebody/their-model.1", "model.safetensors")]

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
from torch import Tensor

from sagan.config.load import load_config
from sagan.data.sources import TorchvisionSource
from sagan.models.hub import read_snapshot
from sagan.utils.errors import UserError

LETTERS = list(pairwise("abcdefghi"))
YAML = {
    "a list that aliases multiply": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in LETTERS), "aliases"),
    "mappings that aliases multiply": (
        "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{{', '.join(f'{i}: *{a}' for i in range(9))}}}\n" for a, b in LETTERS),
        "aliases"),
    "merges that multiply": (
        "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{f'*{a}, ' * 9}]}}\n" for a, b in LETTERS), "aliases"),
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
    text, words = YAML[name]
    Path("bad.yaml").write_text(text)
    started = time.monotonic()
    assert_refused("train bad.yaml --out out", words, place)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32"])
def test_other_encodings(encoding: str, place: Path) -> None:
    Path("bad.yaml").write_bytes("seed: 1  # für".encode(encoding))
    assert_refused("train bad.yaml --out out", "bad.yaml: not readable:", place)


def test_harmless_aliases_work(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "optim:\n  generator: &adam {lr: 0.01, betas: [0.5, 0.9]}\n  discriminator: {<<: *adam, lr: 0.02}\n"
    )
    optim = load_config(tmp_path / "a.yaml").optim
    assert (optim.generator.lr, optim.discriminator.lr, optim.discriminator.betas) == (0.01, 0.02, (0.5, 0.9))


def refuse_changed(change: Callable[[Path], object], words: str, place: Path, source: str = "snapshot") -> None:
    """Change a copy of the snapshot or of the data; the command that reads it must refuse it."""
    change(shutil.copytree(source, Path("bad")))
    command = "sample bad --num 2" if source == "snapshot" else "train c.yaml --set data.source=bad"
    try:
        assert_refused(f"{command} --out out", words, place)
    finally:
        shutil.rmtree("bad")


def header(length: int, text: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + rest


def tensors(
    size: int, offsets: tuple[int, int], shape: tuple[int, ...] = (2,), dtype: str = "F32", **more: Any
) -> bytes:
    text = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **more}).encode()
    return header(len(text), text, b"\0" * size)


SAFETENSORS = {
    "a header of 2^63 bytes": header(1 << 63, b"{}"),
    "a header of 1 GiB": header(1 << 30, b"{}"),
    "a header that is no JSON": header(4, b"\xff\xff{}"),
    "a header that nests": header(100_000, b"[" * 100_000),
    "overlapping tensors": tensors(12, (0, 8), b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}),
    "offsets behind the end": tensors(4, (0, 8)),
    "offsets that go back": tensors(8, (8, 0)),
    "a shape that does not fit": tensors(8, (0, 8), (1 << 60,)),
    "a shape that overflows": tensors(8, (0, 8), (1 << 40,) * 4),
    "an unknown type": tensors(8, (0, 8), dtype="X99"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors(name: str, place: Path) -> None:
    weights = SAFETENSORS[name]
    refuse_changed(lambda bad: (bad / "model.safetensors").write_bytes(weights), "model.safetensors", place)


@pytest.mark.parametrize(("name", "change", "words"), [
    ("conv.bias", lambda t: t.fill_(float("inf")), "conv.bias holds values that are not finite"),
    ("conv.bias", lambda t: t.double().fill_(1e300), "not finite"),
    ("conv.bias", lambda t: t.int(), "torch.int32"),
    ("conv.bias", lambda t: t + 0j, "torch.complex64"),
    ("conv.bias", lambda t: t > 0, "torch.bool"),
    ("\x1b[2Ja", lambda t: torch.zeros(1), "tensor \\x1b[2Ja"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_tensors_of_another_kind(name: str, change: Callable[[Tensor], Tensor], words: str, place: Path) -> None:
    def rewrite(bad: Path) -> None:
        found = load_file(bad / "model.safetensors")
        save_file(found | {name: change(found["conv.bias"])}, bad / "model.safetensors")

    refuse_changed(rewrite, words, place)


def edit(name: str, changes: dict[str, Any]) -> Callable[[Path], object]:
    """Change entries of a JSON file; a dict is merged with the one that is there."""

    def change(bad: Path) -> None:
        found = json.loads((bad / name).read_text())
        merged = {k: found[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
        (bad / name).write_text(json.dumps(found | merged))

    return change


@pytest.mark.parametrize(("changes", "words"), [
    ({"generator": {"channels": 10**9}}, "its tensors hold"), ({"generator": {"channels": 3000}}, "its tensors hold"),
    ({"generator": {"z_dim": 10**400}}, "its tensors hold"), ({"generator": [1]}, "config.json"),
    ({"num_classes": 10**9, "class_names": []}, "its tensors hold"),
    ({"class_names": ["a", "b", "c", "\x1b]0;x\x07"]}, "printable"),
    ({"class_names": ["a", "b", "c", "d\ne"]}, "printable"),
    ({"class_names": "abcd"}, "class_names"), ({"class_names": [1, 2, 3, 4]}, "class_names"),
    ({"class_names": list("abcdefg")}, "7 class_names"), ({"format": "x" * 10**6}, "'xxx"),
])  # fmt: skip
def test_hostile_snapshot_configs(changes: dict[str, Any], words: str, place: Path) -> None:
    refuse_changed(edit("config.json", changes), words, place)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": \0}', "\ufeff{}", '"' + "x" * (1 << 24) + '"'],
                         ids=["deep", "long number", "NUL", "BOM", "large"])  # fmt: skip
def test_hostile_json(text: str, place: Path) -> None:
    refuse_changed(lambda bad: (bad / "manifest.json").write_text(text), "bad/manifest.json: ", place, "data")


@pytest.mark.parametrize(("changes", "words"), [
    ({"source": "\x1b[2Jx"}, "'\\x1b[2Jx'"), ({"class_names": ["a", "b", "c", "\n"]}, "printable"),
    ({"num_classes": 10**12}, "1000000000000"), ({"count": 10**40}, "manifest"), ({"count": True}, "classes"),
    ({"class_counts": None}, "class_counts"), ({"resolution": -1}, "resolution"), ({"format": "x" * 10**6}, "format"),
    ({"x" * 5000: 1}, "manifest"),
])  # fmt: skip
def test_hostile_manifests(changes: dict[str, Any], words: str, place: Path) -> None:
    refuse_changed(edit("manifest.json", changes), words, place, "data")


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

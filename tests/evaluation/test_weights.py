"""Weights files: found, downloaded, refused; nothing in them is executed."""

import os
import socket
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from sagan.evaluation import extractors
from sagan.evaluation.extractors import Pretrained, as_file, find_weights, load_tensors, tensors_sha256
from sagan.utils.errors import UserError
from sagan.utils.io import sha256

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty checkpoints folder of a new torch hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A weights file to download."""
    path = tmp_path / "source" / "net-1.pth"
    path.parent.mkdir()
    torch.save(TENSORS, path)
    return path


def test_a_given_file_takes_precedence_and_must_exist(cache: Path, source: Path) -> None:
    assert find_weights(Pretrained("http://127.0.0.1:1/net-1.pth", "00000000"), source) == source
    for wrong in (source.with_name("other.pth"), source.parent):
        with pytest.raises(UserError, match="no such weights file"):
            find_weights(Pretrained(source.as_uri()), wrong)


def test_weights_are_downloaded_once(cache: Path, source: Path) -> None:
    pretrained = Pretrained(source.as_uri(), sha256(source)[:8], "renamed.pth")
    assert find_weights(pretrained) == cache / "renamed.pth"
    assert [path.name for path in cache.iterdir()] == ["renamed.pth"]
    assert (cache / "renamed.pth").read_bytes() == source.read_bytes()
    source.unlink()
    assert find_weights(pretrained) == cache / "renamed.pth"


def test_files_with_another_digest_are_refused(cache: Path, source: Path) -> None:
    pretrained = Pretrained(source.as_uri(), "00000000")
    with pytest.raises(UserError, match="truncated, or another file"):
        find_weights(pretrained)
    assert list(cache.iterdir()) == []
    (cache / "net-1.pth").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match=r"not the official file \(SHA-256 00000000…\).*--w"):
        find_weights(pretrained, option="--w")


def test_failed_downloads_are_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the place for the file and its digest; servers that do not answer are given up."""
    with pytest.raises(UserError, match="--w") as error:
        find_weights(Pretrained("http://127.0.0.1:1/x/net-1.pth", "ab" * 32), option="--w")
    assert all(part in str(error.value) for part in (str(cache / "net-1.pth"), f"SHA-256 {'ab' * 32})", "refused"))
    assert "\n" not in str(error.value)
    monkeypatch.setattr(extractors, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UserError, match="timed out"):
        find_weights(Pretrained(f"http://127.0.0.1:{server.getsockname()[1]}/net-1.pth"))
    assert list(cache.iterdir()) == []


def test_tensors_keep_types_and_values(source: Path, tmp_path: Path) -> None:
    torch.save(OrderedDict(TENSORS), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for found in (
        load_tensors(source),
        load_tensors(tmp_path / "old.pth"),
        torch.load(as_file(TENSORS), weights_only=True),
    ):
        assert list(found) == list(TENSORS)
        for name, value in TENSORS.items():
            assert torch.equal(found[name], value)
            assert found[name].dtype == value.dtype


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_executed(zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = {"a.weight": torch.ones(2), "b": Evil(mark)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth: damaged, truncated, or not a file of tensors only"):
        load_tensors(tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists()  # so the file is one that executes


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut", "text", "archive", "TorchScript", "missing"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path, source: Path, recwarn: pytest.WarningsRecorder) -> None:
    path, whole = tmp_path / "damaged.pth", source.read_bytes()
    content = {"empty": b"", "garbage": bytes(range(256)) * 9, "cut": whole[: len(whole) // 2], "text": b"<html>"}
    if kind in content:
        path.write_bytes(content[kind])
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no tensors")
    elif kind == "TorchScript":
        with warnings.catch_warnings():  # torch.jit is deprecated
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match=r"damaged\.pth: (damaged|cannot be read)"):
        load_tensors(path)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "expected a dictionary of tensors"),
        ({}, "expected a dictionary of tensors"),
        ({"state_dict": {"a.weight": torch.ones(2)}}, "state_dict is not a tensor"),
        ({"a.weight": torch.tensor([1.0, float("nan")])}, "a.weight holds values that are not finite"),
    ],
)
def test_other_content_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        load_tensors(tmp_path / "other.pth")


def test_the_hash_depends_on_everything_but_the_order() -> None:
    expected = tensors_sha256(TENSORS)
    assert tensors_sha256(dict(reversed(TENSORS.items()))) == expected
    changed = [
        {**TENSORS, "steps": torch.tensor(8)},
        {**TENSORS, "steps": torch.tensor(7, dtype=torch.int32)},
        {**TENSORS, "a.weight": TENSORS["a.weight"].reshape(3, 2)},
        {"b.weight": TENSORS["a.weight"], "steps": TENSORS["steps"]},
    ]
    assert len({expected, *map(tensors_sha256, changed)}) == 5

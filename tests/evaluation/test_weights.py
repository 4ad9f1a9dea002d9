"""Files of weights: found, fetched, refused; nothing is executed."""

import os
import socket
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from sagan.evaluation import extractors as weights_module
from sagan.evaluation.extractors import Pretrained, as_file, find_weights, load_tensors, tensors_sha256
from sagan.utils.errors import UserError
from sagan.utils.io import sha256

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub: the folder of its files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of weights to fetch."""
    path = tmp_path / "source" / "net-1.pth"
    path.parent.mkdir()
    torch.save(TENSORS, path)
    return path


def test_a_given_file_is_taken_as_it_is(cache: Path, source: Path) -> None:
    """Breaks when the cache comes before what the user named, or a missing file is replaced silently."""
    assert find_weights(Pretrained("http://127.0.0.1:1/net-1.pth", "00000000"), source) == source
    for wrong in (source.with_name("other.pth"), source.parent):
        with pytest.raises(UserError, match="no such weights file"):
            find_weights(Pretrained(source.as_uri()), wrong)


def test_it_is_fetched_once_into_the_cache(cache: Path, source: Path) -> None:
    """Breaks when a download leaves more than the file, or happens again."""
    published = Pretrained(source.as_uri(), sha256(source)[:8], "renamed.pth")
    assert find_weights(published) == cache / "renamed.pth"
    assert [path.name for path in cache.iterdir()] == ["renamed.pth"]
    assert (cache / "renamed.pth").read_bytes() == source.read_bytes()
    source.unlink()
    assert find_weights(published) == cache / "renamed.pth"


def test_another_file_by_its_name_is_refused(cache: Path, source: Path) -> None:
    """Breaks when a file that is not the published one gets into the cache, or is taken from it."""
    published = Pretrained(source.as_uri(), "00000000")
    with pytest.raises(UserError, match="truncated, or another file"):
        find_weights(published)
    assert list(cache.iterdir()) == []
    (cache / "net-1.pth").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match=r"not the official file \(SHA-256 00000000…\); delete it, or name .* by --w"):
        find_weights(published, option="--w")


def test_without_a_network_it_says_what_to_put_where(cache: Path) -> None:
    """Breaks when the message lacks place, digits or reason."""
    digits = "ab" * 32
    with pytest.raises(UserError, match="--w") as error:
        find_weights(Pretrained("http://127.0.0.1:1/x/net-1.pth", digits), option="--w")
    assert str(cache / "net-1.pth") in str(error.value)
    assert f"SHA-256 {digits})" in str(error.value)
    assert "refused" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a command hangs where packets are dropped."""
    monkeypatch.setattr(weights_module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net-1.pth"
        with pytest.raises(UserError, match="timed out"):
            find_weights(Pretrained(url))
    assert list(cache.iterdir()) == []


def test_tensors_come_back(source: Path, tmp_path: Path) -> None:
    """Breaks when a dtype or a value is lost, on disk or in memory, or an old file of torch cannot be read."""
    torch.save(OrderedDict(TENSORS), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for found in (
        load_tensors(source),
        load_tensors(tmp_path / "old.pth"),
        torch.load(as_file(TENSORS), weights_only=True),
    ):
        assert list(found) == list(TENSORS)
        assert all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items()
        )


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    """Breaks when a file is unpickled: the mark is made then."""
    mark = tmp_path / "mark"
    torch.save({"a.weight": torch.ones(2), "b": Evil(mark)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: damaged, truncated, or not a file of tensors only; nothing was e"):
        load_tensors(tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists()  # so the file is one that executes


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut short", "text", "archive", "TorchScript"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path, source: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Breaks when another error than a UserError, or a warning, comes of damaged bytes."""
    path = tmp_path / "damaged.pth"
    whole = source.read_bytes()
    content = {"empty": b"", "garbage": bytes(range(256)) * 9, "cut short": whole[: len(whole) // 2], "text": b"<html>"}
    path.write_bytes(content.get(kind, b""))
    if kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no tensors")
    if kind == "TorchScript":
        with warnings.catch_warnings():  # torch.jit is deprecated
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match=r"damaged\.pth: damaged, truncated"):
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
def test_content_that_is_no_weights_is_refused(content: object, message: str, tmp_path: Path) -> None:
    """Breaks when such a file gets as far as a network."""
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        load_tensors(tmp_path / "other.pth")


def test_hash_of_tensors_is_of_everything_but_their_order() -> None:
    """Breaks when two networks that differ share a cache of features, or one does not find its own."""
    expected = tensors_sha256(TENSORS)
    assert tensors_sha256(dict(reversed(TENSORS.items()))) == expected
    changed = [
        {**TENSORS, "steps": torch.tensor(8)},
        {**TENSORS, "steps": torch.tensor(7, dtype=torch.int32)},
        {**TENSORS, "a.weight": TENSORS["a.weight"].reshape(3, 2)},
        {"b.weight": TENSORS["a.weight"], "steps": TENSORS["steps"]},
    ]
    assert len({expected, *map(tensors_sha256, changed)}) == 5

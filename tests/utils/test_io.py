"""Atomic files and folders, JSON, checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sagan.utils.errors import UserError
from sagan.utils.io import append_json_line, atomic_file, atomic_folder, make_folder, read_json, sha256, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # on the same disk, or the rename would copy
    assert path.read_text() == "half"
    assert names(path.parent) == ["a.txt"]


def test_atomic_folder_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "00000001"
    for content in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / content).write_text(content)
    assert names(path / "inner") == ["new"]
    assert names(tmp_path) == ["00000001"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, kind: Callable[[Path], AbstractContextManager[Path]], error: type[BaseException]
) -> None:
    path = tmp_path / "00000001"

    def write(text: str, fail: bool) -> None:
        with kind(path) as temporary:
            (temporary / "a" if kind is atomic_folder else temporary).write_text(text)
            if fail:
                raise error

    write("old", fail=False)
    with pytest.raises(error):
        write("half of the n", fail=True)
    assert (path / "a" if kind is atomic_folder else path).read_text() == "old"
    assert names(tmp_path) == ["00000001"]


def test_json_round_trip_and_stable_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1, 0.1, None], "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": [1, 0.1, None]})
    assert read_json(tmp_path / "a") == {"b": [1, 0.1, None], "a": "ü"}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"nope"], ids=["empty", "cut", "binary", "text"])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_lines_are_appended(tmp_path: Path) -> None:
    for step in (1, 2):
        append_json_line(tmp_path / "new" / "log.jsonl", {"step": step, "text": "a\nb"})
    lines = (tmp_path / "new" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "text": "a\nb"} for step in (1, 2)]


@pytest.mark.parametrize("inside", ["", "inner", "inner/most"])
def test_a_file_where_a_folder_is_wanted(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file|not a folder"):
        make_folder(tmp_path / "file" / inside)


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192 + b"end"
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("folder", [False, True])
def test_names_are_flushed_to_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    """The content before the rename, the parent folder after it."""
    done = list[str]()
    paths = dict[int, str]()
    flush, rename, opened = os.fsync, os.replace, os.open

    def remember(path: Path, *args: int) -> int:
        paths[descriptor := opened(path, *args)] = Path(path).name.rpartition("-")[2]
        return descriptor

    monkeypatch.setattr(os, "open", remember)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(paths[descriptor]), flush(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    place = tmp_path / "place"
    if folder:
        with atomic_folder(place / "new") as temporary:
            (temporary / "file").write_text("x")
        assert done == ["file", "new", "rename", "place"]
    else:
        with atomic_file(place / "new") as temporary:
            temporary.write_text("x")
        assert done == ["new", "rename", "place"]

"""Folders of images, and the mistakes in them that would otherwise be silent."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sagan.data.sources import FolderSource
from sagan.utils.errors import UserError


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        FolderSource(Path(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def labels(source: FolderSource) -> dict[str, int]:
    found = {}
    for item in source.items():
        image, found[item.name] = item.read()
        image.close()
    return found


def test_class_folders_give_labels_in_sorted_order(folder: Path):
    """Breaks when labels follow the order in which the disk lists the folders."""
    (folder / "bird").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "bird" / "x.PNG")
    source = FolderSource(folder)
    assert source.class_names() == ("bird", "cat", "dog")
    assert labels(source) == {"bird/x.PNG": 0} | {f"cat/{i}.png": 1 for i in range(4)} | {
        f"dog/{i}.png": 2 for i in range(4)
    }


def test_a_flat_folder_has_no_classes(folder: Path):
    """Breaks when a folder of images alone is taken for one class."""
    source = FolderSource(folder / "cat")
    assert (source.num_classes, source.class_names(), len(source)) == (0, (), 4)


def test_files_that_are_not_images_are_counted_and_hidden_ones_ignored(folder: Path):
    """Breaks when a text file is decoded, or .DS_Store makes a report longer."""
    (folder / "notes.txt").write_text("")
    (folder / "cat" / "a.heic").write_text("")
    (folder / "cat" / ".DS_Store").write_text("")
    (folder / ".git").mkdir()
    source = FolderSource(folder)
    assert source.ignored == ("cat/a.heic", "notes.txt")
    assert source.problems == ()


def test_one_class_folder_only(folder: Path):
    """Breaks when one folder silently means that every label is 0."""
    for i in range(4):
        (folder / "dog" / f"{i}.png").unlink()
    (folder / "dog").rmdir()
    message = refusal(folder)
    assert "one class folder only, cat" in message
    assert str(folder / "cat") in message


def test_folders_one_level_too_deep_name_the_right_path(folder: Path):
    """Breaks when SOURCE/train/<class>/ is read as classes named train and test."""
    inner = folder.parent / "set"
    inner.mkdir()
    folder.rename(inner / "train")
    assert f"the source to give is {inner / 'train'}" in refusal(inner)
    (inner / "test" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(inner / "test" / "cat" / "x.png")
    assert f"{inner / 'test'} or {inner / 'train'}" in refusal(inner)


def test_splits_are_no_classes(folder: Path):
    """Breaks when flat train and test folders become two classes."""
    (folder / "cat").rename(folder / "train")
    (folder / "dog").rename(folder / "Test")
    assert "splits, not classes" in refusal(folder)


def test_images_beside_class_folders(folder: Path):
    """Breaks when one of the two is dropped in silence."""
    Image.new("RGB", (32, 32)).save(folder / "stray.png")
    message = refusal(folder)
    assert "stray.png" in message
    assert "cat" in message


def test_what_some_class_folders_hide_is_a_problem(folder: Path):
    """Breaks when images below a class folder, or empty class folders, go unnoticed."""
    (folder / "cat" / "more").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "cat" / "more" / "x.png")
    (folder / "cow").mkdir()
    source = FolderSource(folder)
    assert [(problem.kind, problem.name) for problem in source.problems] == [
        ("nested", "cat/more/x.png"),
        ("empty_class", "cow"),
    ]
    assert len(source) == 8


def test_nothing_there(tmp_path: Path):
    """Breaks when an empty folder gets as far as training."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "holds no image;" in refusal(tmp_path / "a")
    (tmp_path / "a" / "data.csv").write_text("")
    assert "1 other files: data.csv" in refusal(tmp_path / "a")


def test_links_may_not_leave_the_folder(folder: Path, tmp_path: Path):
    """Breaks when a link in a downloaded data set makes some private picture of this machine part of it."""
    (tmp_path / "private").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "private" / "me.png")
    (folder / "cat" / "leak.png").symlink_to(tmp_path / "private" / "me.png")
    (folder / "zebra").symlink_to(tmp_path / "private")
    (folder / "cat" / "twin.png").symlink_to(folder / "cat" / "0.png")
    (folder / "cat" / "broken.png").symlink_to(folder / "cat" / "missing.png")
    source = FolderSource(folder)
    assert {(problem.name, problem.kind) for problem in source.problems} == {
        ("cat/leak.png", "outside"),
        ("zebra", "outside"),
        ("cat/broken.png", "undecodable"),
    }
    assert "cat/twin.png" in labels(source)


def test_links_in_a_circle_end(folder: Path):
    """Breaks when linked folders are followed at any depth."""
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "all").symlink_to(folder)
    assert len(FolderSource(folder)) == 8


def test_odd_names_cannot_write_to_the_terminal(folder: Path):
    """Breaks when a file's name reaches terminal or JSON as it is: escape sequences, broken encodings."""
    os.rename(os.fsencode(folder / "cat" / "0.png"), os.fsencode(folder / "cat") + b"/\x1b[31m\xff.png")
    names = list(labels(FolderSource(folder)))
    assert "cat/\\x1b[31m\\udcff.png" in names
    assert all(name.isprintable() for name in names)


def test_fingerprint_follows_the_files(folder: Path):
    """Breaks when a changed, added or renamed image would leave a stale preparation in use."""
    first = FolderSource(folder).fingerprint()
    assert FolderSource(folder).fingerprint() == first
    (folder / "notes.txt").write_text("")
    assert FolderSource(folder).fingerprint() == first
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    renamed = FolderSource(folder).fingerprint()
    os.utime(folder / "cat" / "1.png", ns=(0, 0))
    assert len({first, renamed, FolderSource(folder).fingerprint()}) == 3

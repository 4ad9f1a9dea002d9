"""A folder of images as a source: one sub-folder a class, or images alone (no labels).

The layout is checked before any image is read, because the classic mistakes are silent: a path one level too high
makes every label 0, a path one level too low leaves one class, and `train` beside `test` look like two classes.
Classes are the sub-folders sorted by name. Links that leave the folder are never followed.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from sagan.data.source import FORMATS, Item, Problem, Source, printable
from sagan.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
DEEPEST = 32  # folders in folders; only the first level can hold images
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})


class FolderSource(Source):
    """Raises UserError for a folder without images or whose layout leaves open what the classes are."""

    def __init__(self, root: Path) -> None:
        tree = _Tree(root.resolve())
        self.root = tree.root
        parts = tree.root.parts[-2:] if tree.root.name.lower() in SPLITS else tree.root.parts[-1:]
        self.name = printable("/".join(parts))
        self._classes = _classes(root, tree)
        self.num_classes = len(self._classes)
        nested = [path for folder, paths in tree.images.items() if "/" in folder for path in paths]
        empty = [name for name in self._classes if not tree.images.get(name)]
        self.problems = (
            *tree.problems,
            *(Problem("nested", printable(path), "lies deeper than the class folders") for path in nested),
            *(Problem("empty_class", printable(name), "a class folder without an image") for name in empty),
        )
        self.ignored = tuple(map(printable, tree.ignored))
        self._fingerprint = tree.digest.hexdigest()
        self._paths = [(path, i) for i, name in enumerate(self._classes or [""]) for path in tree.images.get(name, [])]

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self) -> str:
        """Of names, sizes and modification times of the images."""
        return self._fingerprint

    def class_names(self) -> tuple[str, ...]:
        return tuple(map(printable, self._classes))

    def items(self) -> Iterator[Item]:
        for path, label in self._paths:
            yield Item(printable(path), partial(_open, f"{self.root}/{path}", label))


@dataclass
class _Tree:
    """What lies under `root`: images by folder ("" the root itself, "a/b" below), with paths relative to the root."""

    root: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)  # directly under the root
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()
        self._walk("")

    def _walk(self, folder: str) -> None:
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except PermissionError:
            raise UserError(
                f"{printable(os.path.join(self.root, folder))}: no permission to read this folder"
            ) from None
        for entry in visible:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink() and not self._holds(entry.path):
                self.problems.append(Problem("outside", printable(path), "a link that leaves the data folder"))
            elif entry.is_dir():
                # A linked folder is followed at the top alone: links to their own parents would never end.
                if path.count("/") > DEEPEST:
                    self.problems.append(Problem("nested", printable(path)[:200], f"lies over {DEEPEST} folders deep"))
                elif not folder or not entry.is_symlink():
                    if not folder:
                        self.folders.append(entry.name)
                    self._walk(path)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                self._add_image(folder, path, entry)
            else:
                self.ignored.append(path)

    def _holds(self, link: str) -> bool:
        """Whether a link, followed to its end, stays under the root; links in a circle have no end."""
        try:
            return Path(link).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def _add_image(self, folder: str, path: str, entry: os.DirEntry[str]) -> None:
        try:
            about = entry.stat()
        except OSError as error:
            self.problems.append(Problem("undecodable", printable(path), error.strerror or "not readable"))
            return
        if not stat.S_ISREG(about.st_mode):  # to open a pipe would wait for ever
            self.problems.append(Problem("undecodable", printable(path), "a pipe, a socket or a device, no file"))
            return
        self.digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), about.st_size, about.st_mtime_ns))
        self.images.setdefault(folder, []).append(path)


def _classes(root: Path, tree: _Tree) -> list[str]:
    """The class folders, sorted; [] for a flat folder. UserError where the layout is none of the two."""
    with_images = [name for name in tree.folders if tree.images.get(name)]
    nested = sorted({folder.rpartition("/")[0] for folder in tree.images if "/" in folder})
    if not tree.images:
        raise UserError(_no_image(root, tree))
    if "" in tree.images:
        if with_images or nested:
            raise UserError(
                f"{root}: holds images ({_few(tree.images[''])}) beside folders with images "
                f"({_few(with_images or nested)}); give either class folders or images alone"
            )
        return []
    if not with_images:
        choice = " or ".join(str(root / name) for name in nested[:3])
        raise UserError(f"{root}: its class folders lie deeper than one level; the source to give is {choice}")
    if len(with_images) == 1 and not nested:
        only = root / with_images[0]
        raise UserError(
            f"{root}: holds one class folder only, {only.name}; to train without labels give {only}, "
            "for classes put each into a folder of its own"
        )
    if SPLITS.issuperset(name.lower() for name in with_images):
        raise UserError(
            f"{root}: {_few(with_images)} are splits, not classes; give one of them, such as {root / with_images[-1]}"
        )
    return tree.folders


def _no_image(root: Path, tree: _Tree) -> str:
    known = ", ".join(sorted(SUFFIXES))
    if tree.problems:
        problem = tree.problems[0]
        return f"{root}: holds no usable image; {problem.name}: {problem.reason}"
    others = f" (but {len(tree.ignored)} other files: {_few(tree.ignored)})" if tree.ignored else ""
    return f"{root}: holds no image{others}; images end in {known}"


def _few(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def _open(path: str, label: int) -> tuple[Image.Image, int]:
    return Image.open(path, formats=FORMATS), label

"""Labels of files from their folders alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sagan.data.files import Problem, few, printable, shared_folder
from sagan.utils.errors import UserError

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})


class Layout(NamedTuple):
    """Labels by index of the file, in the order of the images; class names, () without labels; what is left out."""

    labels: dict[int, int]
    classes: tuple[str, ...]
    problems: list[Problem]


def class_folders(root: Path, images: dict[int, str], folders: Iterable[str]) -> Layout:
    """Labels from folders, or none for images alone. `images`: paths by index. Raises UserError for other layouts.

    The classes are the first level at which folders differ. The images lie in the class folders themselves, or all in a
    folder of the same name below, such as `<class>/images`.
    """
    above = shared_folder(images.values())
    by_folder = dict[str, list[int]]()  # below `above`
    for index, path in images.items():
        by_folder.setdefault(path[len(above) :].rpartition("/")[0], []).append(index)
    if len(by_folder) == 1 and not above:
        return Layout(dict.fromkeys(images, 0), (), [])
    known = {folder.partition("/")[0] for folder in by_folder}
    inner = {folder.partition("/")[2] for folder in by_folder}
    if "" in by_folder or SPLITS.issuperset(map(str.lower, known)) or not ("" in inner or len(inner) == 1):
        raise UserError(f"{root}: {_unclear(root, above, by_folder, images)}")
    below = "" if "" in inner else f"/{inner.pop()}"
    known |= {folder[len(above) :].partition("/")[0] for folder in folders if folder.startswith(above)}
    classes = sorted(known - {""})
    labels = {index: label for label, name in enumerate(classes) for index in by_folder.get(name + below, [])}
    deep = [images[index] for index in images if index not in labels]
    problems = [Problem("nested", printable(path), "lies deeper than the class folders") for path in deep]
    empty = [above + name for name in classes if name + below not in by_folder]
    problems += [Problem("empty_class", printable(name), "a class folder without an image") for name in empty]
    return Layout(labels, tuple(map(printable, classes)), problems)


def _unclear(root: Path, above: str, by_folder: dict[str, list[int]], images: dict[int, str]) -> str:
    """Why the folders below `above` are no classes, and which source to give."""
    known = sorted({folder.partition("/")[0] for folder in by_folder if folder})
    if len(by_folder) == 1:
        return (
            f"holds one class folder only, {above[:-1]}; to train without labels give {root / above}, "
            "for classes put each into a folder of its own"
        )
    if "" in by_folder:
        return (
            f"holds images ({few(images[i] for i in by_folder[''])}) beside folders with images ({few(known)}); "
            "give either class folders or images alone"
        )
    if SPLITS.issuperset(name.lower() for name in known):
        one = next((name for name in known if name.lower().startswith("train")), known[0])
        return f"{few(known)} are splits, not classes; give one of them, such as {root / above / one}"
    choice = " or ".join(str(root / above / name) for name in known[:3])
    return f"its class folders lie deeper than one level; the source to give is {choice}"

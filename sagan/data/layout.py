"""Labels of files, from their names alone or from a table of labels."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sagan.data.files import Files, Problem, printable, shared_folder
from sagan.utils.errors import UserError

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
STYLEGAN = "dataset.json"
Rows = list[tuple[str, Any]]  # name of a file, and its label


class Layout(NamedTuple):
    """Labels by index of the file, in the order of the images; class names, () without labels; what is left out."""

    labels: dict[int, int]
    classes: tuple[str, ...]
    problems: list[Problem]


def few(names: Iterable[str]) -> str:
    shown = [printable(name)[:200] for name in names]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


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


def stylegan_rows(files: Files, paths: dict[int, str]) -> tuple[int, Rows | None] | None:
    """The index of `dataset.json` and its labels, None for `"labels": null`; None where no such file is."""
    found = [index for index, path in paths.items() if path.rpartition("/")[2] == STYLEGAN]
    if not found:
        return None
    where = files.root / files.names[found[0]]
    if len(found) > 1:
        places = few(paths[index].rpartition("/")[0] or "." for index in found)
        raise UserError(f"{files.root}: {len(found)} folders hold a {STYLEGAN} ({places}); give one of them")
    try:
        raw = json.loads(files.text(found[0]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict) or "labels" not in raw:
        return None  # of another tool
    if raw["labels"] is None:
        return found[0], None
    pairs = raw["labels"]
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise UserError(f'{where}: "labels" is no list of pairs such as ["00000/img00000000.png", 6], and not null')
    above = paths[found[0]].removesuffix(STYLEGAN)
    return found[0], [(above + name, label) for name, label in pairs]


def from_rows(images: dict[int, str], rows: Rows, where: str) -> Layout:
    """Labels from a table. Raises UserError for labels of several kinds, and where no name fits an image.

    Images without a label, names without an image and images with two labels become problems.
    """
    places = {path: index for index, path in images.items()}
    values, problems, twice = dict[int, Any](), list[Problem](), set[int]()
    for name, value in rows:
        index = places.get(name)
        if index is None:
            problems.append(Problem("missing", printable(name)[:200], f"named in {where}, no image of the source"))
        elif value is not None and values.setdefault(index, value) != value:
            twice.add(index)
    if not values.keys() and rows:
        raise UserError(f"{where}: names no image of the source; it has {few(n for n, _ in rows)}, the source has "
                        f"{few(images.values())}")  # fmt: skip
    for kind, indices, reason in (
        ("unlabelled", images.keys() - values.keys(), f"has no label in {where}"),
        ("contradiction", twice, f"has several labels in {where}"),
    ):
        problems += [Problem(kind, printable(images[index]), reason) for index in sorted(indices)]
    known = {index: values[index] for index in images if index in values and index not in twice}
    labels, classes = _numbered(known, images, where)
    return Layout(labels, classes, problems)


def _numbered(values: dict[int, Any], images: dict[int, str], where: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Labels from 0, and the names of the classes: sorted numbers or texts."""
    kinds = dict[str, list[int]]()
    for index, value in values.items():
        kinds.setdefault(_kind(value), []).append(index)
    if len(kinds) > 1 or not all(kinds):
        found = "; ".join(
            f"{len(indices)} {kind or 'of another kind'}: {few(f'{images[i]} {values[i]!r}'[:80] for i in indices)}"
            for kind, indices in kinds.items()
        )
        raise UserError(f"{where}: expected one kind of label, numbers, texts or one-hot vectors, for all; has {found}")
    plain = {index: value.index(1) if isinstance(value, list) else value for index, value in values.items()}
    classes = sorted(set(plain.values()))
    if len(classes) < 2:
        raise UserError(f"{where}: all labels are the same; leave them out to train without labels")
    number = {value: label for label, value in enumerate(classes)}
    return {index: number[value] for index, value in plain.items()}, tuple(printable(str(name)) for name in classes)


def _kind(value: Any) -> str:
    """What a label is, in the plural; "" for what is none."""
    if isinstance(value, int | str):
        return "texts" if isinstance(value, str) else "numbers"
    if isinstance(value, list) and value.count(1) == 1 and value.count(0) == len(value) - 1:
        return f"vectors of {len(value)}"
    return ""

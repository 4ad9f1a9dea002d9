"""Labels of files: from their folders, or from tables (StyleGAN's dataset.json, CSV and the like, JSON lines)."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sagan.data.files import LARGEST_LABELS, SIDES, SUFFIXES, Files, Problem, few, printable, shared_folder, suffix
from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import expand_home, read_text

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
STYLEGAN = "dataset.json"
USUAL = ("label", "labels", "class", "class_name", "class_id", "category", "target", "species", "breed")
MOST_ALONE = 100  # labels that may be all different
Rows = list[tuple[str, Any]]  # name of a file, and its label
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Layout(NamedTuple):
    """Labels by index of the file, in the order of the images; class names, () without labels; files left out."""

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
    problems = [Problem("nested", printable(path), "is below the class folders") for path in deep]
    empty = [above + name for name in classes if name + below not in by_folder]
    problems += [Problem("empty_class", printable(name), "a class folder without an image") for name in empty]
    return Layout(labels, tuple(map(printable, classes)), problems)


def _unclear(root: Path, above: str, by_folder: dict[str, list[int]], images: dict[int, str]) -> str:
    """Why the folders below `above` are not classes, and which source to give."""
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
    if len(found) > 1:
        places = few(paths[index].rpartition("/")[0] or "." for index in found)
        raise UserError(f"{files.root}: {len(found)} folders hold a {STYLEGAN} ({places}); give one of them")
    where = str(files.root / files.names[found[0]])
    ((_, text),) = files.texts(found)
    raw = _json(text, where)
    if not isinstance(raw, dict) or "labels" not in raw:
        return None  # of another tool
    if raw["labels"] is None:
        return found[0], None
    above = paths[found[0]].removesuffix(STYLEGAN)
    return found[0], [(above + name, label) for name, label in _pairs(raw["labels"], where)]


def _pairs(pairs: Any, where: str) -> Rows:
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise UserError(f'{where}: "labels" is not a list of pairs such as ["00000/img00000000.png", 6], nor null')
    return [(name, label) for name, label in pairs]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({error})") from None


def sample_labels(files: Files, images: Iterable[int]) -> tuple[list[int], dict[int, Any], str] | None:
    """Labels of WebDataset samples, files of one name up to its first dot: from .cls, .json with a label, or .txt.

    Returns the indices of the files of labels, labels by index of the image, and what to call them; None without any,
    or if they are captions, which hardly repeat.
    """
    samples = dict[str, list[int]]()
    for index in images:
        samples.setdefault(_sample(files.names[index])[0], []).append(index)
    keys = [_sample(name) for name in files.names]
    for side in SIDES:
        found = [index for index, (key, end) in enumerate(keys) if end == side and key in samples]
        values = dict[int, Any]()
        for index, text in files.texts(found):
            label = _side_label(text.strip(), side, files.names[index])
            values |= dict.fromkeys(samples[keys[index][0]] if label is not None else [], label)
        if values and not (side == ".txt" and len(set(values.values())) > max(MOST_ALONE, len(values) // 2)):
            return found, values, f"its {side} files"
    return None


def _sample(name: str) -> tuple[str, str]:
    """The key of a sample, and the rest of the name."""
    folder, _, base = name.rpartition("/")
    key, dot, end = base.partition(".")
    return f"{folder}/{key}", f"{dot}{end}".lower()


def _side_label(text: str, side: str, name: str) -> Any:
    if side != ".json":
        return _number(text)
    raw = _json(text, name)
    return next((raw[key] for key in USUAL if raw.get(key) is not None), None) if isinstance(raw, dict) else raw


class Names:
    """Finds images by their path or its last parts, with or without their suffix. `images`: paths by index."""

    def __init__(self, root: Path, images: dict[int, str]) -> None:
        self._images, self._whole = images, {path: index for index, path in images.items()}
        self._parts = {index: (*root.parts, *path.split("/")) for index, path in images.items()}
        self._most = max(map(len, self._parts.values()))
        self._ends = dict[int, dict[str, int]]()  # by number of parts; -1: several images end so

    def find(self, name: Any) -> int | None:
        """The index of an image. None if no image or several have this name."""
        path = str(name).replace("\\", "/").removeprefix("./")
        count = path.count("/") + 1
        if path in self._whole or count > self._most:
            return self._whole.get(path)
        if count not in self._ends:
            ends = self._ends[count] = {}
            for index, parts in self._parts.items():
                end = "/".join(parts[-count:])
                for key in (end, os.path.splitext(end)[0]):
                    ends[key] = index if ends.setdefault(key, index) == index else -1
        index = self._ends[count].get(path, -1)
        return None if index < 0 else index

    def rows(self, file: str, columns: str | None) -> Rows:
        """The labels in a file: CSV, TSV or other columns, with or without a header, JSON lines, or as dataset.json.

        The names are in the column that fits most images, the labels in the only other one, in that of a usual name or,
        without a header, in the next one; or `columns`, "NAME,LABEL", says which. Raises UserError for an unclear file.
        """
        path = expand_home(file)
        if not path.is_file():
            raise UserError(f"{file}: {'is not a file' if path.exists() else 'no such file'}; give a table of labels")
        try:
            text = read_text(path, LARGEST_LABELS).removeprefix("\ufeff").strip()
        except UnicodeDecodeError:
            raise UserError(f"{file}: is not UTF-8 text") from None
        with suppress(ValueError, RecursionError):  # of JSON lines
            raw = json.loads(text) if text.startswith("{") else None
            if isinstance(raw, dict) and isinstance(raw.get("labels"), list):
                return _pairs(raw["labels"], file)
        table, has_head = _table(text, file)
        width = range(len(table[0]))
        hits = [len({self.find(row[i]) for row in table} - {None}) for i in width]
        name = max(width, key=lambda i: hits[i])
        has_head = has_head or columns is not None or self._is_head(table, name)
        if columns is None:
            label = _label_column(table[0], name, has_head, file)
        else:
            name, label = _named(columns, list(map(str, table[0])), file)
        return [(str(row[name]), _number(row[label])) for row in table[has_head:]]

    def _is_head(self, table: list[list[Any]], name: int) -> bool:
        """Whether the first row names no image and has nothing in common with the others."""
        first, *others = table
        if self.find(first[name]) is not None or suffix(first[name]) in SUFFIXES:
            return False
        return not any(row[i] == cell for i, cell in enumerate(first) for row in others)


def _table(text: str, where: str) -> tuple[list[list[Any]], bool]:
    """Rows of equal length, at least one, and whether the first one is known to be a header."""
    first = text.partition("\n")[0]
    mark = next((mark for mark in "\t,;" if mark in first), None)
    if is_json := text.startswith("{"):
        lines = enumerate(text.split("\n"), 1)
        records = [_json(line, f"{where}: line {number}") for number, line in lines if line.strip()]
        if not all(isinstance(record, dict) for record in records):
            raise UserError(f'{where}: expected one object such as {{"file": "a.png", "label": 6}} on each line')
        table = [list(records[0]), *([record.get(key) for key in records[0]] for record in records)]
    elif mark is None:
        table = [line.split() for line in text.split("\n")]
    else:
        try:
            table = list(csv.reader(io.StringIO(text), delimiter=mark))
        except csv.Error as error:
            raise UserError(f"{where}: not readable as a table ({error})") from None
        table = [[cell.strip() for cell in row] for row in table]
    table = [row for row in table if any(cell not in ("", None) for cell in row)]
    if not table or len(table[0]) < 2:
        raise UserError(f"{where}: {'is one column' if table else 'is empty'}, expected a file and its label a line")
    if odd := [number for number, row in enumerate(table, 1) if len(row) != len(table[0])]:
        raise UserError(f"{where}: row {odd[0]} has {len(table[odd[0] - 1])} columns, the first one {len(table[0])}")
    return table, is_json


def _label_column(first: list[Any], name: int, has_head: bool, where: str) -> int:
    if len(first) == 2:
        return 1 - name
    if not has_head and name + 1 < len(first):
        return name + 1
    usual = [i for i, cell in enumerate(first) if has_head and str(cell).lower() in USUAL and i != name]
    if len(usual) == 1:
        return usual[0]
    raise UserError(f"{where}: which of its columns ({few(map(str, first))}) is the label? Name the columns of files "
                    f"and labels by --columns FILE,LABEL (data.columns)")  # fmt: skip


def _named(columns: str, head: list[str], where: str) -> tuple[int, int]:
    """The places of two columns named as "NAME,LABEL"."""
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2:
        raise UserError(f"--columns {columns}: expected the names of two columns, as FILE,LABEL")
    for name in names:
        if name not in head:
            raise UserError(f"{where}: has no column {name}; {suggestion(name, head)}")
    return head.index(names[0]), head.index(names[1])


def _number(cell: Any) -> Any:
    """A label of a table: a number if it is written as one, None if it is empty."""
    if isinstance(cell, str) and re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", cell, re.ASCII):
        return int(cell.partition(".")[0])
    return None if cell == "" else cell


def from_rows(images: dict[int, str], names: Names, rows: Rows, where: str) -> Layout:
    """Labels from a table. Raises UserError for labels of several kinds, and where no name fits an image.

    Images without a label, names without an image and images with two labels become problems.
    """
    values, problems, twice = dict[int, Any](), list[Problem](), set[int]()
    for name, value in rows:
        index = names.find(name)
        if index is None:
            problems.append(Problem("missing", printable(name)[:200], f"in {where}, but no single image"))
        elif value is not None and values.setdefault(index, value) != value:
            twice.add(index)
    if not values.keys() and rows:
        raise UserError(f"{where}: names no image of the source; it has {few(n for n, _ in rows)}, the source has "
                        f"{few(images.values())}")  # fmt: skip
    for index in twice:
        values[index] = None
    problems += [
        Problem("contradiction", printable(images[i]), f"has several labels in {where}") for i in sorted(twice)
    ]
    return from_values(images, values, problems, where)


def from_values(images: dict[int, str], values: dict[int, Any], problems: list[Problem], where: str) -> Layout:
    """Labels by index, of which None leaves an image out; images without any are added to the problems."""
    without = [printable(images[index]) for index in images if index not in values]
    problems = [*problems, *(Problem("unlabelled", name, f"has no label in {where}") for name in without)]
    known = {index: values[index] for index in images if values.get(index) is not None}
    labels, classes = numbered(known, images, where)
    return Layout(labels, classes, problems)


def numbered(values: dict[int, Any], images: dict[int, str], where: str) -> tuple[dict[int, int], tuple[str, ...]]:
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
    plain = {index: int(value) if isinstance(value, float) else value for index, value in plain.items()}
    classes = sorted(set(plain.values()))
    if len(classes) > max(MOST_ALONE, len(plain) // 2):
        raise UserError(
            f"{where}: {len(classes)} labels for {len(plain)} images; are these names or captions instead of classes?"
        )
    if len(classes) < 2:
        raise UserError(f"{where}: all labels are the same; leave them out to train without labels")
    number = {value: label for label, value in enumerate(classes)}
    return {index: number[value] for index, value in plain.items()}, tuple(printable(str(name)) for name in classes)


def _kind(value: Any) -> str:
    """What a label is, in the plural; "" for what is none."""
    if isinstance(value, int | str) or (isinstance(value, float) and value.is_integer()):
        return "texts" if isinstance(value, str) else "numbers"
    if isinstance(value, list) and value.count(1) == 1 and value.count(0) == len(value) - 1:
        return f"vectors of {len(value)}"
    return ""

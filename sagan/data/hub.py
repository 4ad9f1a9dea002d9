"""Data sets of the library `datasets`, streamed: from the Hugging Face Hub, saved to disk, or as parquet files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from sagan.data.decode import Unusable
from sagan.data.files import few, open_image, printable
from sagan.data.labels import USUAL, numbered
from sagan.data.sources import Item, Source, short_reason
from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import expand_home


class HubSource(Source):
    """`text`: NAME[:CONFIG][@SPLIT], NAME an id on the Hub or a path; the split is `train` or the only one by default.

    `columns`, "IMAGE,LABEL" or "IMAGE" for no labels, where the features do not tell them. Only images that the rows
    hold are read, not files of this machine that they name. Raises UserError for anything unclear or unreadable.
    """

    def __init__(self, text: str, columns: str | None = None) -> None:
        match = re.fullmatch(r"([^:@]+)(?::([^:@]+))?(?:@([^:@]+))?", text)
        if match is None:
            raise UserError(f"hf:{text}: expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")
        self._where, path = f"hf:{text}", expand_home(match[1])
        local = path.exists()
        self.root = path.resolve() if local else None
        self.name = printable(f"hf:{path.resolve().name}{text[len(match[1]) :]}" if local else f"hf:{text}")
        with self._readable():
            sets = _load(path if local else match[1], match[2])
            split = match[3] or ("train" if "train" in sets or len(sets) > 1 else next(iter(sets)))
            if split not in sets:
                raise UserError(f"hf:{text}: has no split {split}, but {few(sets)}; give one, as hf:NAME@SPLIT")
            data = sets[split]
            data = data if data.features is not None else data._resolve_features()
            self._image, self._label = self._columns(data.features, columns)
            self._prepare(data, split)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if local else []
        stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        self._fingerprint = repr((text if not local else split, self._image, self._label, self._count, stamps))

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        return self._fingerprint

    def class_names(self) -> tuple[str, ...]:
        return self._names

    def items(self) -> Iterator[Item]:
        with self._readable():
            for index, row in enumerate(self._data):
                label = self._numbers.get(row[self._label]) if self._label else 0
                yield Item(f"image {index}", partial(_read, row[self._image], label))

    def _prepare(self, data: Any, split: str) -> None:
        """Set the columns to read, their number of rows, and the classes, for which the labels may be read once."""
        datasets = import_module("datasets")
        wanted = [self._image, *([self._label] if self._label else [])]
        if isinstance(data.features[self._image], datasets.Image):
            data = data.cast_column(self._image, datasets.Image(decode=False))  # Pillow is called with fewer decoders
        self._data = data.select_columns(wanted)
        feature: Any = data.features[self._label] if self._label else None
        about = (data.info.splits or {}).get(split)
        self._count = about.num_examples if about is not None and about.num_examples else 0
        self._names, self._numbers = (), dict[Any, int]()
        if isinstance(feature, datasets.ClassLabel):
            self._names = tuple(map(printable, feature.names))
            self._numbers = {number: number for number in range(len(self._names))}
        if not self._count or (self._label and not self._names):
            rows = [row[wanted[-1]] if self._label else None for row in data.select_columns(wanted[-1:])]
            self._count = len(rows)
            if self._label and not self._names:
                values = {index: value for index, value in enumerate(rows) if value not in (None, "")}
                labels, self._names = numbered(
                    values, {i: f"image {i}" for i in values}, f"{self._where}, {self._label}"
                )
                self._numbers = {values[index]: label for index, label in labels.items()}
        self.num_classes = len(self._names)

    def _columns(self, features: Any, columns: str | None) -> tuple[str, str | None]:
        datasets = import_module("datasets")
        if columns is not None:
            image, *label = [name.strip() for name in columns.split(",")]
            for name in (image, *label):
                if name not in features:
                    raise UserError(f"{self._where}: has no column {name!r}; {suggestion(name, list(features))}")
            return image, label[0] if label else None
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        images = images or [name for name, feature in features.items() if _holds_bytes(feature)]
        labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        labels = labels or [name for name in features if name.lower() in USUAL and name not in images]
        if len(images) != 1 or len(labels) > 1:
            raise UserError(f"{self._where}: which of its columns ({few(features)}) are images and which labels? "
                            "Name them by --columns IMAGE,LABEL, or IMAGE without labels (data.columns)")  # fmt: skip
        return images[0], labels[0] if labels else None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Make any error of the library a UserError."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"{self._where}: needs the library datasets: pip install 'sagan[hub]' ({error})") from None
        except Exception as error:  # of networks, of files and of Arrow
            raise UserError(f"{self._where}: could not be read: {short_reason(error)}") from None


def _load(place: Path | str, config: str | None) -> dict[str, Any]:
    """Streamed data sets by name of their split."""
    datasets = import_module("datasets")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if isinstance(place, str):
        return datasets.load_dataset(place, config, streaming=True)
    saved = {file.parent for file in place.rglob("*.arrow")} if place.is_dir() else set[Path]()
    if saved:
        files = {
            folder.name if folder != place else "train": sorted(map(str, folder.glob("*.arrow"))) for folder in saved
        }
        return datasets.load_dataset("arrow", data_files=files, streaming=True)
    if place.is_file():
        return datasets.load_dataset("parquet", data_files=str(place), streaming=True)
    return datasets.load_dataset(str(place), config, streaming=True)


def _holds_bytes(feature: Any) -> bool:
    return "bytes" in feature if isinstance(feature, dict) else getattr(feature, "dtype", "").endswith("binary")


def _read(value: Any, label: int | None) -> tuple[Image.Image, int]:
    content = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if label is None:
        raise Unusable("unlabelled", "has no label")
    if content is None and re.fullmatch(r"((zip|tar)://[^:]*::)?hf://[^:]*", path or ""):
        with import_module("fsspec").open(path, "rb") as file:
            content = file.read()
    if not isinstance(content, bytes):
        raise Unusable("undecodable", "a row without an image")
    return open_image(partial(BytesIO, content), label)

"""What `sagan evaluate` and `sagan stats` are pointed at: runs, snapshots, folders, arrays, and references."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagan.archive import member_names
from sagan.data.dataset import PreparedData, is_prepared
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.errors import UserError
from sagan.files import expand_home
from sagan.resolutions import RESOLUTIONS
from sagan.settings import DataSettings

if TYPE_CHECKING:
    from sagan.evaluation.backbones import Backbone
    from sagan.evaluation.image_set import ImageSet
    from sagan.evaluation.reference import Reference

Kind = Literal["run", "checkpoint", "snapshot", "prepared", "files"]


@dataclass(frozen=True)
class Source:
    """SOURCE and what it is; `run`: the folder of the run that it is or lies in."""

    text: str
    kind: Kind
    run: Path | None = None

    @property
    def path(self) -> Path:
        return Path(self.text)


def recognise(text: str) -> Source:
    """What SOURCE is, from what lies in it; a text that is no path is taken for a Hub id."""
    path = expand_home(text)
    if (path / "snapshots").is_dir() or (path / "checkpoints").is_dir():
        return Source(str(path), "run", path)
    run = path.resolve().parent.parent
    inside = run if (run / "config.yaml").is_file() else None
    if (path / "state.json").is_file():
        return Source(str(path), "checkpoint", inside)
    if is_prepared(path):
        return Source(str(path), "prepared")
    if path.is_file() or (path.is_dir() and not (path / "model.safetensors").is_file()):
        return Source(str(path), "files")
    return Source(str(path) if path.exists() else text, "snapshot", inside)


def open_files(source: Source) -> "ImageSet":
    """The images of a source that is no generator."""
    from sagan.evaluation.image_set import from_files, from_prepared

    if source.kind == "prepared":
        return from_prepared(PreparedData.open(source.path))
    return from_files(source.path)


def open_reference(
    text: str, size: tuple[int, int], resize: Literal["crop", "squash"], backbone: "Backbone | None", quiet: bool
) -> "Reference":
    """A reference at the samples' size (H, W): statistics, prepared data, or a source that is prepared first."""
    from sagan.evaluation.image_set import from_files, from_prepared
    from sagan.evaluation.reference import Reference, reference_from_file

    path = expand_home(text)
    if holds_statistics(path):
        if backbone is None:
            raise UserError(f"{path}: statistics of features are for fid, which was not asked for")
        return reference_from_file(path, size, backbone)
    if is_prepared(path):
        data = PreparedData.open(path)
        images, resized = from_prepared(data), data.manifest.resize
    elif size[0] == size[1] and size[0] in RESOLUTIONS:
        settings = DataSettings(source=text, resolution=size[0], resize=resize)
        data = ensure_prepared(settings, report=(lambda line: None) if quiet else to_stderr)
        images, resized = from_prepared(data), data.manifest.resize
    else:
        images, resized = from_files(path), "as is"
    if images.size != size:
        raise UserError(f"{text}: its images are {_by(images.size)}, the samples are {_by(size)}")
    return Reference(images.name, images, resize=resized)


def holds_statistics(path: Path) -> bool:
    """Whether this is an .npz of mean and covariance, of ours or of another project's."""
    return path.is_file() and not {"mean", "mu"}.isdisjoint(member_names(path))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

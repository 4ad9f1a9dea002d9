"""`sagan stats`: the statistics of a data set's features as a file, for machines that do not have the data."""

from pathlib import Path
from typing import Any, Literal

from sagan.commands.measured import holds_statistics, open_reference
from sagan.errors import UserError
from sagan.files import check_file_place
from sagan.resolutions import RESOLUTIONS


def stats_command(
    data: str, out: Path, resolution: int | None, resize: Literal["crop", "squash"], backbone: str,
    weights: Path | None, batch_size: int, device: str,
) -> None:  # fmt: skip
    """Write mean and covariance of the features of `data` to `out`, an .npz without pickles that says what it is.

    `resolution`: None where `data` is prepared and says it. Under torchrun all processes share the work.
    """
    if out.suffix != ".npz":
        raise UserError(f"{out}: a file of statistics is an .npz")
    check_file_place(out)
    if holds_statistics(Path(data).expanduser()):
        raise UserError(f"{data}: holds statistics already")
    size = _size(data, resolution)

    from sagan.evaluation.backbones import load_backbone
    from sagan.evaluation.processes import process_group, rank_and_count
    from sagan.evaluation.reference import identity, reference_features
    from sagan.evaluation.statistics import save_statistics
    from sagan.sampling import pick_device, processes

    rank, world = processes()
    chosen = pick_device(device)
    with process_group(world, chosen):
        network = load_backbone(backbone, weights, chosen)
        reference = open_reference(data, (size, size), resize, network, quiet=rank > 0)
        assert reference.images is not None
        found = reference_features(reference, network, batch_size)
        if found is not None and rank_and_count()[0] == 0:
            about: dict[str, Any] = {
                "name": reference.name, "images": reference.images.key, "size": [size, size],
                "resize": reference.resize, **identity(network),
            }  # fmt: skip
            save_statistics(out, found.statistics, about)
            print(f"{out}: statistics of {found.statistics.count} images of {reference.name}")


def _size(data: str, resolution: int | None) -> int:
    from sagan.data.dataset import PreparedData, is_prepared

    if is_prepared(data):
        found = PreparedData.open(data).manifest.resolution
        if resolution not in (None, found):
            raise UserError(f"{data}: prepared at {found}x{found}, --resolution says {resolution}")
        return found
    if resolution is None:
        raise UserError(f"{data}: not prepared; --resolution says at which size its images are taken")
    if resolution not in RESOLUTIONS:
        raise UserError(f"--resolution {resolution}: expected one of {', '.join(map(str, RESOLUTIONS))}")
    return resolution

"""`sagan sample`: images of a snapshot as PNG files, one .npz, or the way between two seeds."""

import sys
from pathlib import Path

from sagan.errors import UserError
from sagan.selections import check_interpolation, check_truncation, parse_classes, select_seeds


def sample_command(
    snapshot: str,
    out: Path,
    seeds: str | None = None,
    num: int | None = None,
    classes: str | None = None,
    truncation: float | None = None,
    grid: bool = False,
    npz: bool = False,
    interpolate: tuple[int, int] | None = None,
    frames: int = 32,
    animation: str = "gif",
    device: str = "auto",
) -> None:
    """Draw images into the folder `out`; what is there already is kept. The options are those of `sagan sample`.

    Under torchrun every process draws its share. UserError, before torch is imported, for options that do not fit
    together; afterwards, before `out` is touched, for a bad snapshot, unknown classes, or samples of something else.
    """
    check_truncation(truncation)
    if interpolate is not None:
        check_interpolation(interpolate, frames, [seeds, num, grid or None, npz or None])
    chosen = select_seeds(seeds, num) if interpolate is None else interpolate

    from sagan import sample_folder
    from sagan.sampling import pick_device, processes
    from sagan.snapshot import load_snapshot

    rank, world = processes()
    if npz and world > 1:
        raise UserError("--npz is written by one process; start it without torchrun, or leave --npz out")
    generator = load_snapshot(snapshot)
    labels = None if classes is None else parse_classes(classes, generator.class_names, generator.num_classes)
    generator.to(pick_device(device))
    if interpolate is None:
        samples = sample_folder.plan_samples(chosen, labels, generator, grid)
        said = sample_folder.write_samples(out, generator, samples, truncation, grid, npz, rank, world)
    elif rank == 0:
        said = sample_folder.write_interpolation(out, generator, interpolate, labels, truncation, frames, animation)
    else:
        return
    print(said, file=sys.stderr)

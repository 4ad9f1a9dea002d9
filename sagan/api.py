"""The public API: what the commands do, as functions that return results which show themselves in a notebook.

A source is the path of a run, a checkpoint or a snapshot, a Hub id, a `Run`, or a generator in memory. Data are a path
or a name that `sagan prepare` takes, prepared data, an array uint8 (N, H, W, 3), a pair (images, labels) with integers
(N,), or a torch data set of (image, label). Mistakes raise `UserError`. Nothing is printed on stdout; `quiet` hides
messages and progress.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from sagan.config.load import as_config, load_config
from sagan.config.options import as_classes, as_seeds, check_truncation
from sagan.config.schema import Config
from sagan.data.dataset import PreparedData
from sagan.data.prepare import prepare as prepare_data
from sagan.data.prepare import source_of
from sagan.evaluation import command as evaluation
from sagan.evaluation.registry import check_names, parse_metrics
from sagan.evaluation.result import Scores
from sagan.experiments.charts import comparison_figure, rendered
from sagan.experiments.compare import compare_runs
from sagan.experiments.runs import Comparison, RunRecord, read_run
from sagan.inspection import command as inspection
from sagan.inspection.attention import Attention
from sagan.inspection.record import Points, pixel_points
from sagan.models.generator import Generator
from sagan.runs.run_dir import final_snapshot
from sagan.runs.snapshot import load_snapshot, snapshots
from sagan.sampling.sampler import pick_device, processes
from sagan.sampling.writer import Samples, plan_samples
from sagan.sampling.writer import sample as sample_images
from sagan.training.trainer import start
from sagan.utils.errors import UserError, first_error, user_errors
from sagan.utils.images import as_png
from sagan.utils.io import expand_home
from sagan.utils.progress import in_cell, silenced
from sagan.utils.system import free_signals

PathLike = str | os.PathLike[str]
Device = Literal["auto", "cpu", "cuda", "mps"]


@contextmanager
def _call(quiet: bool, source: Any = None) -> Iterator[None]:
    """A call of the API: errors are UserErrors, and a generator in memory is in eval mode meanwhile."""
    training = isinstance(source, Generator) and source.training
    with silenced(quiet), user_errors():
        try:
            if training:
                source.eval()
            yield
        finally:
            if training:
                source.train()


@dataclass(frozen=True)
class Run:
    """A folder of a run, as `sagan.train` returns it. In a notebook it shows its curves and its newest samples.

    It is also a path: every function takes it as a source.

    Attributes:
        folder: where it is; stopped: the signal that ended `train` early, such as "SIGINT".

    Examples:
        >>> run = sagan.Run("runs/shapes")
        >>> run.step, run.finished, run.config.training.batch_size
        (2, True, 8)
        >>> run.log[-1]["step"]
        2
    """

    folder: Path
    stopped: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", expand_home(self.folder))

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def config(self) -> Config:
        """Its settings."""
        return load_config(self.folder / "config.yaml")

    @property
    def step(self) -> int:
        """The number of generator updates so far."""
        return self._record.step

    @property
    def finished(self) -> bool:
        """Whether the last step of its config is done."""
        return final_snapshot(self.folder, self.config.training.steps) is not None

    @property
    def snapshots(self) -> list[Path]:
        """Its snapshots, oldest first. UserError if there are none."""
        return snapshots(self.folder)

    @property
    def log(self) -> list[dict[str, float]]:
        """The lines of log.jsonl: `step` and the finite numbers logged there. docs/training.md lists them."""
        return [{"step": line.step or 0, **line.numbers} for line in self._record.log]

    @property
    def scores(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl: `step` and the scores, also those of `evaluate`, oldest first."""
        return [{"step": line.step or 0, **line.scores} for line in self._record.metrics]

    @property
    def _record(self) -> RunRecord:
        return read_run(self.folder, self.folder.name)

    def generator(self) -> Generator:
        """The generator of the newest snapshot. UserError if there is none yet."""
        return load_snapshot(self.folder)

    def _repr_png_(self) -> bytes | None:
        comparison = compare_runs([self.folder])
        run = comparison.runs[0]
        if not (run.log or run.metrics or any((self.folder / "samples").glob("*.png"))):
            return None
        return as_png(rendered(comparison_figure(comparison, width=11)))


def prepare(
    source: Any, out: PathLike | None = None, resolution: int = 32, *, resize: Literal["crop", "squash"] = "crop",
    skip_bad: bool = False, labels: str | None = None, columns: str | None = None, channels: Literal[1, 3] = 3,
    quiet: bool = False,
) -> PreparedData:  # fmt: skip
    """Check images and convert them to uint8 (N, R, R, C) in the folder `out`, as `sagan prepare` does.

    Nothing is done if `out` already holds this source with these settings.

    Args:
        source: data, see the module. An array may also be (N, H, W, 1) or (N, H, W); an image of a data set is one of
            PIL's, uint8 (H, W, 3), or a tensor (3, H, W), uint8 or from 0 to 1.
        out: None: a folder in ~/.cache/sagan/data, named after source and settings.
        resolution: R: 32, 64, 128 or 256.
        resize: "crop" takes the central square of each image, "squash" ignores its aspect ratio.
        skip_bad: leave out unusable images instead of raising UserError.
        labels: a table of labels, for a folder or an archive; `columns`: those of files and labels, "FILE,LABEL".
        channels: C: 3, or 1 for grayscale.

    Raises UserError for a source that is missing, empty or of unclear layout, arrays of another shape or type, labels
    that do not fit, unusable images, and an `out` that holds something else.

    Examples:
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), np.uint8)
        >>> data = sagan.prepare((images, np.arange(20) % 2), "data/noise", resolution=32)
        >>> data.images.shape, data.labels[:4].tolist()
        ((20, 32, 32, 3), [0, 1, 0, 1])
    """
    with _call(quiet):
        return prepare_data(
            source, out, resolution, resize=resize, skip_bad=skip_bad, labels=labels, columns=columns, channels=channels
        )


def train(
    config: PathLike | Mapping[str, Any] | Config, data: Any = None, *, out: PathLike,
    changes: Mapping[str, Any] | None = None, quiet: bool = False,
) -> Run:  # fmt: skip
    """Train a GAN, or resume the run in `out`, as `sagan train` does. In a notebook its picture is updated in place.

    An interrupt saves the run and returns it with `stopped` "SIGINT"; the same call resumes it. This needs the main
    thread of a program without a handler of its own. A second interrupt raises KeyboardInterrupt.

    Args:
        config: the name of a built-in config, a file, a mapping or a Config.
        data: the training data, instead of `data.source`. Data in memory are prepared into ~/.cache/sagan/data.
        out: the folder of the run.
        changes: dotted names of settings and their values, as `--set` takes them.

    Raises UserError for settings that are unknown, wrong or do not fit together, the data or the run in `out`, and when
    training diverges.

    Examples:
        >>> tiny = {"training.steps": 2, "training.batch_size": 8, "generator.channels": 2, "discriminator.channels": 2}
        >>> run = sagan.train({"seed": 1}, "shapes:40", out="runs/tiny", changes=tiny)
        >>> run.finished
        True
    """
    with _call(quiet):
        settings = as_config(config, changes)
        if data is not None:
            settings = as_config(settings, {"data.source": source_of(data, settings.data)})
        run, picture = Run(Path(out)), in_cell()
        show = None if picture is None else lambda: picture(run)
        stopped = start(settings, run.folder, watched=free_signals(), show=show)
        return Run(run.folder, None if stopped is None else Signals(stopped).name)


def sample(
    source: PathLike | Run | Generator, seeds: int | str | Iterable[int] = 16,
    classes: int | str | Iterable[int | str] | None = None, *, truncation: float | None = None,
    device: Device = "auto", quiet: bool = False,
) -> Samples:  # fmt: skip
    """Generate images, uint8 (N, R, R, 3), the same as `sagan sample` writes.

    Args:
        source: see the module; of a run, its newest snapshot.
        seeds: how many (0 to N - 1), a text such as "0-63,80", or the numbers.
        classes: every seed in each of these, numbers or names, class by class; None: seed mod number of classes.
        truncation: draw z from a normal distribution truncated at this value.
        device: where to compute; a generator in memory stays where it is.

    Raises UserError for a source that is missing or damaged, unknown classes and repeated seeds.

    Examples:
        >>> images = sagan.sample("runs/shapes", seeds=4)
        >>> images.shape, images.dtype, images.labels.tolist()
        ((4, 32, 32, 3), dtype('uint8'), [0, 1, 2, 3])
    """
    with _call(quiet, source):
        check_truncation(truncation)
        chosen = as_seeds(seeds)
        generator = _generator(source, device)
        labels = None if classes is None else as_classes(classes, generator.class_names, generator.num_classes)
        return sample_images(generator, plan_samples(chosen, labels, generator), truncation)


def _generator(source: Any, device: str) -> Generator:
    return source if isinstance(source, Generator) else load_snapshot(os.fspath(source)).to(pick_device(device))


def evaluate(
    source: Any, reference: Any = None, metrics: str | Sequence[str] | None = None, *, num: int | None = None,
    quiet: bool = False, **options: Any,
) -> Scores:  # fmt: skip
    """Score a generator or images, as `sagan evaluate` does; scores of a run are appended to its metrics.jsonl.

    Args:
        source: see the module; also images, as for `prepare`.
        reference: real images: data, or a file of statistics; None: the training data of a run.
        metrics: such as "fid,kid" or a list; None: fid, or coherence for a generator of shapes.
        num: number of samples (None: 10,000), or of the given images (None: all).
        options: the other options of `sagan evaluate`: batch_size, labels, truncation, repeats, which, modes, backbone,
            inception_weights, backbone_weights, vgg16_weights, lpips, lpips_weights, out and device.

    Raises UserError for unknown metrics and options, and metrics that are not defined on these images.

    Examples:
        >>> generator = sagan.load_snapshot("runs/shapes")
        >>> scores = sagan.evaluate(generator, metrics=["coherence"], num=16, labels="uniform")
        >>> "hue_agreement" in scores.values, scores.protocol.seeds
        (True, '0-15')
    """
    with _call(quiet, source):
        if metrics is not None:
            metrics = parse_metrics(metrics) if isinstance(metrics, str) else check_names(metrics, "metrics")
        try:
            settings = evaluation.Evaluation(metrics=metrics, reference=reference, num=num, **options)
        except ValidationError as error:
            raise UserError(f"evaluate: {first_error(error)}") from None
        found = evaluation.parse_source(source)
        scores = evaluation.score(found, settings)
        if processes()[0] == 0:
            evaluation.record(found, scores, settings.out)
        return scores


def attend(
    source: PathLike | Run | Generator, seeds: int | str | Iterable[int] = 8,
    points: int | Literal["random", "grid"] | Sequence[tuple[int, int]] = 5, *,
    classes: int | str | Iterable[int | str] | None = None,
    network: Literal["generator", "discriminator"] = "generator", images: Any = None, quiet: bool = False,
) -> Attention:  # fmt: skip
    """Record what query points attend to, as `sagan attend` does: in generated images, or in real ones.

    Args:
        source: see the module; the discriminator needs a run or a checkpoint.
        seeds: as for `sample`; of real images, their number alone counts.
        points: how many salient points of each image, "random", "grid", or pixels (row, column).
        classes: as for `sample`.
        network: "discriminator": its attention in real images.
        images: real images for the discriminator, data in memory or a folder; None: the training data of the run.

    Raises UserError for a network without attention and for points outside the image.

    Examples:
        >>> attention = sagan.attend("runs/shapes", seeds=2, points=[(8, 8), (20, 12)])
        >>> attention.points.shape, attention.figure().size[0] > 100
        ((2, 2, 2), True)
        >>> images = np.zeros((2, 32, 32, 3), np.uint8)
        >>> real = sagan.attend("runs/shapes", seeds=2, network="discriminator", images=(images, [0, 3]))
        >>> list(real.maps)
        ['trunk.attention.8x8']
    """
    with _call(quiet, source):
        found = evaluation.parse_source(source)
        inspection.check_options(found, network, None, None, images, False, None, False)
        chosen: Points | None = inspection.parse_points(str(points)) if isinstance(points, int | str) else None
        subject = inspection.open_subject(found, as_seeds(seeds), classes, network)
        if chosen is None:
            size = subject.generator.resolution
            chosen = pixel_points(_pixels(points), size, size)
        seen = inspection.record_networks(subject, chosen, network, images)
        return seen["attention" if network == "generator" else "discriminator-real"]


def _pixels(points: Any) -> torch.Tensor:
    found = np.asarray(points)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu" or len(found) > inspection.MAX_POINTS:
        raise UserError(
            f"points: {found.dtype} {found.shape}; expected a number, random, grid, or integers (k, 2): row and column "
            f"of 1 to {inspection.MAX_POINTS} pixels"
        )
    return torch.from_numpy(found)


def compare(runs: PathLike | Iterable[PathLike], metric: str | None = None) -> Comparison:
    """Compare settings and scores of runs, as `sagan compare` does. Of one run: its scores by step.

    Args:
        runs: folders of runs, or Runs.
        metric: show only this one; None: all that some run has.

    Raises UserError for a folder that is not a run, and a metric that no run has.

    Examples:
        >>> comparison = sagan.compare(["runs/shapes", "runs/new"])
        >>> [run.name for run in comparison.runs]
        ['shapes', 'new']
    """
    with _call(quiet=False):
        paths = [runs] if isinstance(runs, str | os.PathLike) else runs
        return compare_runs([expand_home(os.fspath(path)) for path in paths], metric)

"""Evaluation during training: score the averaged generator on all processes and track the best step."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sagan.config.schema import DataSettings, EvaluateSettings
from sagan.data.dataset import PreparedData
from sagan.data.prepare import ensure_prepared
from sagan.data.shapes import variant_of
from sagan.evaluation.evaluate import SampleSettings, evaluate, generated_images, load_networks
from sagan.evaluation.features import Reference, from_prepared
from sagan.evaluation.registry import DIRECTION, METRICS, Networks, check_count
from sagan.models.generator import Generator
from sagan.runs.checkpoint import Progress
from sagan.utils.errors import UserError
from sagan.utils.images import save_png
from sagan.utils.io import append_json_line

FEATURES = "partial-features"  # folder in the run, of an evaluation that has not ended


def make_evaluator(
    settings: EvaluateSettings, data: PreparedData, num_classes: int, device: torch.device
) -> "Evaluator":
    """The evaluator of a run on `data` with `num_classes` classes.

    Raises UserError for metrics that do not fit the data and for missing weights.
    """
    check_evaluation(settings, data.manifest.class_names, num_classes)
    networks = load_networks(
        settings.metrics, device, settings.backbone, _path(settings.backbone_weights), settings.lpips,
        _path(settings.lpips_weights),
    )  # fmt: skip
    reference = None
    if any(METRICS[name].compares for name in settings.metrics):
        manifest = data.manifest
        if settings.reference is not None:
            at = {"source": settings.reference, "resolution": manifest.resolution, "resize": manifest.resize}
            data = ensure_prepared(DataSettings.model_validate(at), report=lambda line: None)
        reference = Reference(data.manifest.source, from_prepared(data), resize=data.manifest.resize)
    return Evaluator(settings, networks, reference)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Everything an evaluation needs, built once. Implements `sagan.training.state.Evaluate`."""

    settings: EvaluateSettings
    networks: Networks
    reference: Reference | None

    def __call__(
        self, run: Path, progress: Progress, generator: Generator, say: Callable[[str], None], stop: Callable[[], bool]
    ) -> tuple[Progress, dict[str, float]]:
        """Score samples of this step and append the result to metrics.jsonl. Every process calls it.

        Returns the scores by name (on the first process, else none), and the progress with the best score so far and
        the number of evaluations since. Raises Interrupted when `stop` is True; features stay in the run's folder for
        the next call at this step.
        """
        settings = self.settings
        sampling = SampleSettings(settings.num, labels=settings.labels)
        samples = generated_images(generator, sampling, self.reference, f"samples at step {progress.step}")
        result = evaluate(
            samples, self.reference, settings.metrics, self.networks, settings.batch_size, sampling, progress.step,
            run / FEATURES / samples.key[:32], stop,
        )  # fmt: skip
        if result is None:
            return progress, {}
        shutil.rmtree(run / FEATURES, ignore_errors=True)
        append_json_line(run / "metrics.jsonl", result.to_dict())
        if result.grid is not None:
            save_png(run / "samples" / f"{progress.step:08d}-nearest.png", result.grid)
        values = result.values
        say(f"step {progress.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if settings.best is None:
            return progress, values
        value, sign = values[settings.best], DIRECTION[settings.best]
        if progress.best is not None and sign * value <= sign * progress.best:
            return replace(progress, stale=progress.stale + 1), values
        return replace(progress, best=value, best_step=progress.step, stale=0), values


def check_evaluation(settings: EvaluateSettings, class_names: Sequence[str], num_classes: int) -> None:
    """Raise UserError for unknown metrics and for metrics that do not fit the data."""
    for name in settings.metrics:
        check_count(name, settings.num, "evaluate.num")
    if not settings.metrics:
        raise UserError("evaluate.every is set, but evaluate.metrics is empty; add one, such as [fid]")
    if "coherence" in settings.metrics and not variant_of(class_names):
        raise UserError("evaluate.metrics: coherence is defined for the data sets shapes and pairs only")
    if "intra_fid" in settings.metrics and not num_classes:
        raise UserError("evaluate.metrics: intra_fid needs classes, but this data has none")
    had = [score for name in settings.metrics for score in METRICS[name].directions]
    if settings.best is not None and settings.best not in had:
        raise UserError(
            f"evaluate.best: {settings.best!r} is not a score of evaluate.metrics; known: {', '.join(had) or 'none'}"
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()

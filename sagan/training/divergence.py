"""Divergence detection: values that are not finite, a saturated discriminator, identical samples, collapsing scores.

The checks read only values that a run computes anyway, so no device waits for them. `in_state` runs before anything is
written. `sagan.training.rollback` decides what happens next.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sagan.config.schema import Config, DivergenceSettings
from sagan.evaluation.registry import DIRECTION
from sagan.models.gan import GAN
from sagan.runs.checkpoint import NETWORKS, OPTIMIZERS, Progress
from sagan.training.losses import LOSSES


@dataclass(frozen=True)
class Divergence:
    """What was found at `step` and held since step `since`. `figures` are JSON values: a NaN is the string "nan"."""

    kind: str  # not_finite, saturation, spread or worse
    reason: str
    figures: dict[str, float | str]
    step: int
    since: int


def in_values(step: int, values: Mapping[str, Tensor | float]) -> Divergence | None:
    """A loss, mean logit, gradient norm, gain or singular value that is not finite."""
    found = {name: float(value) for name, value in values.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            return Divergence("not_finite", f"{name} is {value}", _plain(found), step, step)
    return None


@torch.no_grad()
def in_state(step: int, gan: GAN) -> Divergence | None:
    """A weight, statistic or Adam moment that is not finite; no checkpoint or snapshot may hold one.

    Weights are checked by their norm: one that is too large to be squared breaks spectral norm in the next step.
    """
    names, finite = zip(*_finite(gan), strict=True)
    bad = [name for name, whole in zip(names, torch.stack(finite).tolist(), strict=True) if not whole]  # one wait
    if not bad:
        return None
    figures: dict[str, float | str] = {"first": bad[0], "broken_tensors": len(bad), "tensors": len(names)}
    return Divergence("not_finite", f"{bad[0]} is not finite, or too large to be squared", figures, step, step)


def in_discriminator(
    config: Config, progress: Progress, values: Mapping[str, Tensor | float]
) -> tuple[Progress, Divergence | None]:
    """A discriminator that has separated reals from fakes too well for `divergence.patience` steps.

    Compares its adversarial loss, without regularization, with the loss of all-zero logits. Returns the progress with
    the step since which it is saturated.
    """
    settings, step = config.divergence, progress.step
    if settings.saturation is None:
        return progress, None
    found = {name: float(value) for name, value in values.items()}
    undecided = float(LOSSES[config.loss.name].discriminator(torch.zeros(1), torch.zeros(1)))
    share = found.get("d_adversarial", found["d_loss"]) / undecided
    if share > settings.saturation:
        return replace(progress, saturated_since=None), None
    since = step if progress.saturated_since is None else progress.saturated_since
    progress = replace(progress, saturated_since=since)
    if step - since < settings.patience:
        return progress, None
    reason = f"the discriminator is saturated since step {since}: its loss is {share:.3g} of the loss at zero logits"
    figures = _plain({"share": share, "limit": settings.saturation, **found})
    return progress, Divergence("saturation", reason, figures, step, since)


def in_samples(settings: DivergenceSettings, step: int, images: np.ndarray) -> Divergence | None:
    """Samples of one class that are all alike. `images`: uint8 (rows, columns, R, R, 3), one row per class."""
    if settings.spread is None:
        return None
    spread = float(images.std(axis=1, dtype=np.float64).mean()) / 255
    if spread >= settings.spread:
        return None
    reason = f"samples of one class are all alike: their spread {spread:.3g} is below {settings.spread:g}"
    return Divergence("spread", reason, {"spread": spread, "limit": settings.spread}, step, step)


def in_scores(
    settings: DivergenceSettings, progress: Progress, scores: Mapping[str, float]
) -> tuple[Progress, Divergence | None]:
    """A score that is a factor worse than its best. Returns the progress with the best of each watched score."""
    records = dict(progress.records)
    for name, factor in settings.worse.items():
        if name not in scores:
            continue  # only the first process has them
        value, best = scores[name], records.get(name, scores[name])
        if not (value <= best * factor if DIRECTION[name] < 0 else value * factor >= best):
            reason = f"{name} is {value:.4g}, more than {factor:g} times worse than its best, {best:.4g}"
            figures = _plain({name: value, "best": best, "factor": factor})
            return progress, Divergence("worse", reason, figures, progress.step, progress.step)
        records[name] = min(best, value) if DIRECTION[name] < 0 else max(best, value)
    return replace(progress, records=records), None


def _finite(gan: GAN) -> Iterator[tuple[str, Tensor]]:
    """Name and finiteness, bool () on the device, of every floating-point tensor of a checkpoint."""
    for name, attribute in NETWORKS.items():
        for key, tensor in getattr(gan, attribute).state_dict().items():
            if tensor.is_floating_point():
                yield f"{name} {key}", tensor.norm().isfinite()
    for name in OPTIMIZERS:
        for index, entries in getattr(gan, name).state_dict()["state"].items():
            for key in ("exp_avg", "exp_avg_sq"):
                yield f"{name} {index}.{key}", entries[key].isfinite().all()


def _plain(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}

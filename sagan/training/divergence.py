"""What shows that a run has collapsed: values that are not finite, a discriminator with nothing left to learn, samples
that are all alike, a score far behind its best.

Every function takes what a run reads anyway, so that no device waits for it; `broken_state` is called before anything
is written. What is then done: sagan.rollback.
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

NOT_PENALTIES = ("d_loss", "g_loss", "real_logits", "fake_logits", "r1")


@dataclass(frozen=True)
class Divergence:
    """What is wrong at `step`, and was first at step `since`. `figures` are plain: what JSON lacks is text."""

    kind: str  # not_finite, saturation, spread or worse
    reason: str
    figures: dict[str, float | str]
    step: int
    since: int


def broken_values(step: int, values: Mapping[str, Tensor | float]) -> Divergence | None:
    """A loss, mean logit, gradient norm, gain or singular value that is not finite."""
    found = {name: float(value) for name, value in values.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            return Divergence("not_finite", f"{name} is {value}", _plain(found), step, step)
    return None


@torch.no_grad()
def broken_state(step: int, gan: GAN) -> Divergence | None:
    """A weight or statistic whose norm, or a moment of Adam that, is not finite: nothing that is saved may hold one.

    The norm, because a weight too large to be squared is the first sign: it cannot be normalised in the next step.
    """
    names, finite = zip(*_finite(gan), strict=True)
    bad = [name for name, whole in zip(names, torch.stack(finite).tolist(), strict=True) if not whole]  # one wait
    if not bad:
        return None
    figures: dict[str, float | str] = {"first": bad[0], "broken_tensors": len(bad), "tensors": len(names)}
    return Divergence("not_finite", f"{bad[0]} is not finite, or too large to be squared", figures, step, step)


def watch_discriminator(
    config: Config, progress: Progress, values: Mapping[str, Tensor | float]
) -> tuple[Progress, Divergence | None]:
    """Whether the discriminator tells reals from fakes too well for too long; the progress knows since when.

    Its adversarial loss, without penalties, is compared with that of logits that are all 0.
    """
    settings, step = config.divergence, progress.step
    if settings.saturation is None:
        return progress, None
    found = {name: float(value) for name, value in values.items()}
    penalties = config.loss.r1 * found.get("r1", 0.0) + sum(v for n, v in found.items() if n not in NOT_PENALTIES)
    undecided = float(LOSSES[config.loss.name].discriminator(torch.zeros(1), torch.zeros(1)))
    share = (found["d_loss"] - penalties) / undecided
    if share > settings.saturation:
        return replace(progress, saturated_since=None), None
    since = step if progress.saturated_since is None else progress.saturated_since
    progress = replace(progress, saturated_since=since)
    if step - since < settings.patience:
        return progress, None
    reason = f"the discriminator is saturated since step {since}, its loss {share:.3g} of an undecided one's"
    figures = _plain({"share": share, "limit": settings.saturation, **found})
    return progress, Divergence("saturation", reason, figures, step, since)


def watch_samples(settings: DivergenceSettings, step: int, images: np.ndarray) -> Divergence | None:
    """Samples of a class that are all alike. `images` are a sheet, uint8 (rows, columns, R, R, 3), one row a class."""
    if settings.spread is None:
        return None
    spread = float(images.std(axis=1, dtype=np.float64).mean()) / 255
    if spread >= settings.spread:
        return None
    reason = f"samples of one class are all alike, their spread {spread:.3g} is below {settings.spread:g}"
    return Divergence("spread", reason, {"spread": spread, "limit": settings.spread}, step, step)


def watch_scores(
    settings: DivergenceSettings, progress: Progress, scores: Mapping[str, float]
) -> tuple[Progress, Divergence | None]:
    """A score that is a factor worse than its best; the progress remembers the best of each that is watched."""
    records = dict(progress.records)
    for name, factor in settings.worse.items():
        if name not in scores:
            continue  # only the first process has them
        value, best = scores[name], records.get(name, scores[name])
        sound = value <= best * factor if DIRECTION[name] < 0 else value * factor >= best
        if not sound:
            reason = f"{name} is {value:.4g}, more than {factor:g} times worse than its best, {best:.4g}"
            figures = _plain({name: value, "best": best, "factor": factor})
            return progress, Divergence("worse", reason, figures, progress.step, progress.step)
        records[name] = min(best, value) if DIRECTION[name] < 0 else max(best, value)
    return replace(progress, records=records), None


def _finite(gan: GAN) -> Iterator[tuple[str, Tensor]]:
    """Of every tensor of fractions that a checkpoint holds: its name; whether it is sound, bool () on its device."""
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

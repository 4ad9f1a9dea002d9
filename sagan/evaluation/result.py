"""Evaluation results: scores, the protocol stored with them, spread over repeats, and caveats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from sagan.config.schema import Count, Positive, Settings

RECORDED = ("sagan", "torch", "torchvision", "torch-fidelity", "lpips", "numpy")
NOT_COMPARED = ("versions", "seeds", "checkpoint_step")  # they change scores by chance or rounding only


class Protocol(Settings):
    """How scores were measured; None: does not apply. A metric may add fields for its parameters.

    Attributes:
        images: "generated", or "files" for a folder or an .npz.
        num: number of images; size: their height and width.
        lossy: whether the images were stored with loss.
        seeds: inclusive ranges, one for each repeat.
        labels: "reference" (its exact class frequencies), "uniform", "as stored" or "none".
        weights: "averaged" or "raw"; batch_norm: "running" or "standing" statistics.
        reference, reference_hash, reference_count: display name, content hash and number of the real images.
        reference_resize: "crop" or "squash", how they were resized to `size`; "as is" if they were not.
        backbone, backbone_sha256: network of the features and its weights; backbone_input: its input.
        kid, inception_score, manifold: their parameters, in words.
        lpips, lpips_sha256: trunk and weights of LPIPS.
    """

    model_config = ConfigDict(extra="allow")
    images: str
    num: Positive
    size: tuple[int, int]
    lossy: bool = False
    seeds: str | None = None
    labels: str | None = None
    weights: str | None = None
    batch_norm: str | None = None
    truncation: float | None = None
    reference: str | None = None
    reference_hash: str | None = None
    reference_count: Count | None = None
    reference_resize: str | None = None
    backbone: str | None = None
    backbone_sha256: str | None = None
    backbone_input: str | None = None
    dtype: str = "float32, sums in float64"
    kid: str | None = None
    inception_score: str | None = None
    manifold: str | None = None
    lpips: str | None = None
    lpips_sha256: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions of the libraries that scores depend on."""
    return {name: version(name) for name in RECORDED}


def protocol_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields in which two protocols differ so that their scores are not comparable.

    Both are dictionaries as in metrics.jsonl. A missing field counts as None.
    """
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in NOT_COMPARED and _plain(one.get(name)) != _plain(other.get(name))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """One line of metrics.jsonl.

    Attributes:
        values: scores by name; means over the repeats.
        spread: standard deviations over the repeats (divisor n - 1), {} for one.
        per_class: FID of each class by its name.
        step: of the generator, if known.
        grid: samples beside their nearest reference images, uint8 (H, W, 3); not part of the line.
    """

    values: dict[str, float]
    protocol: Protocol
    spread: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    step: int | None = None
    grid: np.ndarray | None = None

    @property
    def mode(self) -> str:
        """Which weights and batch-norm statistics the generator had."""
        return f"{self.protocol.weights} weights, {self.protocol.batch_norm} statistics"

    def to_dict(self) -> dict[str, Any]:
        """Scores at the top level, without empty fields."""
        step = {} if self.step is None else {"step": self.step}
        others = {"spread": self.spread, "per_class": self.per_class, "warnings": list(self.warnings)}
        protocol = self.protocol.model_dump(mode="json", exclude_none=True)
        return {**step, **self.values, **{name: value for name, value in others.items() if value}, "protocol": protocol}

    def to_table(self) -> str:
        """One line per score, then classes, protocol and warnings."""
        lines = [f"{name:24} {_number(value)}{self._plus_minus(name)}" for name, value in self.values.items()]
        if self.per_class:
            lines += ["", "FID by class", *(f"  {name:22} {value:8.2f}" for name, value in self.per_class.items())]
        shown = self.protocol.model_dump(exclude_none=True, exclude={"versions"})
        lines += ["", *(f"{name:24} {_words(value)}" for name, value in shown.items() if value is not False)]
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])

    def _plus_minus(self, name: str) -> str:
        return f" ± {_number(self.spread[name]).strip()}" if name in self.spread else ""


def over_repeats(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Mean and spread of results that differ in their seeds only."""
    if len(results) == 1:
        return results[0]
    first = results[0]
    columns = {name: [one.values[name] for one in results] for name in first.values}
    classes = {name: float(np.mean([one.per_class[name] for one in results])) for name in first.per_class}
    seeds = ",".join(str(one.protocol.seeds) for one in results)
    return EvaluationResult(
        {name: float(np.mean(column)) for name, column in columns.items()},
        first.protocol.model_copy(update={"seeds": seeds}),
        {name: float(np.std(column, ddof=1)) for name, column in columns.items()},
        classes,
        tuple(dict.fromkeys(line for one in results for line in one.warnings)),
        first.step,
        first.grid,
    )


def _number(value: float) -> str:
    return f"{value:10.2f}" if abs(value) >= 100 else f"{value:10.4f}" if abs(value) >= 0.01 else f"{value:10.3g}"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    text = str(value)
    return f"{text[:16]}…" if len(text) == 64 else text


def labels_by_frequency(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Labels int64 (count,) with the relative frequencies of `class_counts` (K,).

    Sample i gets the class furthest behind its share among samples 0…i (smooth weighted round robin). So label i does
    not depend on `count`, every prefix is as balanced as possible, sum(class_counts) samples have exactly these
    counts, and equal counts give i mod K.
    """
    shares = class_counts.astype(np.int64)
    lags = np.zeros_like(shares)
    labels = np.empty(count, np.int64)
    for i in range(count):
        lags += shares
        labels[i] = chosen = lags.argmax()
        lags[chosen] -= shares.sum()
    return labels

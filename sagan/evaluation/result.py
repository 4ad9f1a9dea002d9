"""Evaluation results: scores, the protocol stored with them, their spread over repeats, and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from sagan.config.schema import Count, Positive, Settings
from sagan.evaluation.registry import DIRECTION

RECORDED = ("sagan", "torch", "torchvision", "torch-fidelity", "lpips", "numpy")
NOT_COMPARED = ("versions", "seeds", "checkpoint_step")  # change scores by chance or rounding only


class Protocol(Settings):
    """How scores were computed; None: does not apply. A metric may add fields for its parameters.

    Attributes:
        images: "generated", or "files" for a folder or an .npz.
        num: number of images; size: their height and width.
        lossy: whether the images were stored with loss.
        seeds: inclusive ranges, one per repeat.
        labels: "reference" (its exact class frequencies), "uniform", "as stored" or "none".
        weights: "averaged" or "raw"; batch_norm: "running" or "standing" statistics.
        reference, reference_hash, reference_count: display name, content hash and number of the real images.
        reference_resize: how they were resized to `size`, "crop" or "squash"; "as is" if they were not.
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
    """Versions of the libraries that affect scores."""
    return {name: version(name) for name in RECORDED}


def protocol_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields in which two protocols differ so that their scores are not comparable.

    Both are dictionaries as in metrics.jsonl. A missing field counts as None.
    """
    return [name for name in {**one, **other} if name not in NOT_COMPARED and one.get(name) != other.get(name)]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores and how they were computed: one line of metrics.jsonl. In a notebook they show themselves as a table.

    Attributes:
        values: scores by name; means over the repeats.
        protocol: samples, reference and networks; scores of two protocols that differ are not comparable.
        spread: standard deviations over the repeats (divisor n - 1), {} for a single one.
        per_class: FID of each class by its name.
        step: of the generator, if known.
        grid: samples beside their nearest reference images, uint8 (H, W, 3); not part of the line.
        modes: scores of each combination of weights and batch-norm statistics, of which these are the best.

    Examples:
        >>> scores = sagan.evaluate("runs/shapes", metrics="coherence", num=16)
        >>> 0 <= scores["coherence"] <= 1, scores.protocol.num
        (True, 16)
    """

    values: dict[str, float]
    protocol: Protocol
    spread: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    step: int | None = None
    grid: np.ndarray | None = None
    modes: dict[str, dict[str, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def mode(self) -> str:
        """Which weights and batch-norm statistics the generator had."""
        return f"{self.protocol.weights} weights, {self.protocol.batch_norm} statistics"

    def to_dict(self) -> dict[str, Any]:
        """The line, with scores at the top level and without empty fields."""
        others = {"spread": self.spread, "per_class": self.per_class, "warnings": list(self.warnings)}
        return {
            **({} if self.step is None else {"step": self.step}),
            **self.values,
            **{name: value for name, value in others.items() if value},
            "protocol": self.protocol.model_dump(mode="json", exclude_none=True),
            **({"modes": self.modes, "best_mode": self.mode} if self.modes else {}),
        }

    def to_table(self) -> str:
        """One line per score, then classes, protocol and warnings; before them, the scores of each mode."""
        lines, width = [], max(map(len, self.modes), default=0)
        if self.modes:
            lines.append("  ".join([" " * width, *(name.rjust(10) for name in self.values)]))
            for mode, values in self.modes.items():
                cells = [f"{values[name]:10.4g}" for name in self.values] + ["      best"] * (mode == self.mode)
                lines.append("  ".join([mode.ljust(width), *cells]))
            lines.append("")
        lines += [f"{name:24} {self._text(name)}" for name in self.values]
        if self.per_class:
            lines += ["", "FID by class", *(f"  {name:22} {value:8.2f}" for name, value in self.per_class.items())]
        lines.append("")
        for name, value in self.protocol.model_dump(exclude_none=True, exclude={"versions"}).items():
            text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if value is not False:
                lines.append(f"{name:24} {text if len(text) != 64 else text[:16] + '…'}")
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        scores = {name: self._text(name) for name in self.values}
        of_classes = {f"FID of {name}": f"{value:.2f}" for name, value in self.per_class.items()}
        protocol = self.protocol.model_dump(exclude_none=True, exclude={"versions"})
        about = {name: f"{value}" if len(str(value)) != 64 else f"{value:.16}…" for name, value in protocol.items()}
        rows = [f"<tr><th>{escape(name)}</th><td><b>{text}</b></td></tr>" for name, text in scores.items()]
        rows += [f"<tr><th>{escape(n)}</th><td>{escape(text)}</td></tr>" for n, text in (of_classes | about).items()]
        notes = "".join(f"<p>warning: {escape(line)}</p>" for line in self.warnings)
        return f"<table>{''.join(rows)}</table>{notes}"

    def _text(self, name: str) -> str:
        spread = f" ± {_number(self.spread[name]).strip()}" if name in self.spread else ""
        return f"{_number(self.values[name])}{spread}"


def _number(value: float) -> str:
    return f"{value:10.2f}" if abs(value) >= 100 else f"{value:10.4f}" if abs(value) >= 0.01 else f"{value:10.3g}"


def over_repeats(results: Sequence[Scores]) -> Scores:
    """Mean and spread of results that differ in their seeds only."""
    first = results[0]
    if len(results) == 1:
        return first
    columns = {name: [one.values[name] for one in results] for name in first.values}
    return replace(
        first,
        values={name: float(np.mean(column)) for name, column in columns.items()},
        protocol=first.protocol.model_copy(update={"seeds": ",".join(str(one.protocol.seeds) for one in results)}),
        spread={name: float(np.std(column, ddof=1)) for name, column in columns.items()},
        per_class={name: float(np.mean([one.per_class[name] for one in results])) for name in first.per_class},
        warnings=tuple(dict.fromkeys(line for one in results for line in one.warnings)),
    )


def best_mode(results: Sequence[Scores]) -> Scores:
    """The best of results that differ in their modes only, by their first score that ranks, with the scores of all."""
    score = next((name for name in results[0].values if name in DIRECTION), None)
    best = results[0] if score is None else max(results, key=lambda one: DIRECTION[score] * one.values[score])
    return best if len(results) == 1 else replace(best, modes={one.mode: one.values for one in results})


def labels_by_frequency(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Labels int64 (count,) with the relative frequencies of `class_counts` (K,).

    Sample i gets the class furthest behind its share among samples 0…i (smooth weighted round robin). So label i does
    not depend on `count`, every prefix is as balanced as possible, sum(class_counts) samples have exactly these
    counts, and equal counts give i mod K.
    """
    shares, labels = class_counts.astype(np.int64), np.empty(count, np.int64)
    lags = np.zeros_like(shares)
    for i in range(count):
        lags += shares
        labels[i] = chosen = lags.argmax()
        lags[chosen] -= shares.sum()
    return labels

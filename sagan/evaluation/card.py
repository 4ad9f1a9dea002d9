"""The score card: what was measured, how, how sure it is, and what makes it less than it seems."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sagan.evaluation.protocol import Protocol


@dataclass(frozen=True)
class Card:
    """One line of metrics.jsonl.

    Attributes:
        values: by name; means over the repeats.
        spread: standard deviation over the repeats (divisor n - 1), {} for one.
        per_class: FID of each class by its name.
    """

    values: dict[str, float]
    protocol: Protocol
    spread: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Metrics at the top level, what is empty left out."""
        beside = {"spread": self.spread, "per_class": self.per_class, "warnings": list(self.warnings)}
        protocol = self.protocol.model_dump(mode="json", exclude_none=True)
        return {**self.values, **{name: what for name, what in beside.items() if what}, "protocol": protocol}

    def to_table(self) -> str:
        """A line a score, then the classes, the protocol and the warnings."""
        lines = [f"{name:24} {_number(value)}{self._plus_minus(name)}" for name, value in self.values.items()]
        if self.per_class:
            lines += ["", "FID by class", *(f"  {name:22} {value:8.2f}" for name, value in self.per_class.items())]
        shown = self.protocol.model_dump(exclude_none=True, exclude={"versions"})
        lines += ["", *(f"{name:24} {_words(value)}" for name, value in shown.items() if value is not False)]
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])

    def _plus_minus(self, name: str) -> str:
        return f" ± {_number(self.spread[name]).strip()}" if name in self.spread else ""


def over_repeats(cards: Sequence[Card]) -> Card:
    """One card of several that differ in their seeds alone: mean and spread of every value."""
    if len(cards) == 1:
        return cards[0]
    first = cards[0]
    columns = {name: [card.values[name] for card in cards] for name in first.values}
    classes = {name: float(np.mean([card.per_class[name] for card in cards])) for name in first.per_class}
    seeds = ",".join(str(card.protocol.seeds) for card in cards)
    return Card(
        {name: float(np.mean(column)) for name, column in columns.items()},
        first.protocol.model_copy(update={"seeds": seeds}),
        {name: float(np.std(column, ddof=1)) for name, column in columns.items()},
        classes,
        tuple(dict.fromkeys(line for card in cards for line in card.warnings)),
    )


def _number(value: float) -> str:
    return f"{value:10.2f}" if abs(value) >= 100 else f"{value:10.4f}" if abs(value) >= 0.01 else f"{value:10.3g}"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    text = str(value)
    return f"{text[:16]}…" if len(text) == 64 else text

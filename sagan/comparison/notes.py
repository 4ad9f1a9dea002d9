"""What stands under the table of a comparison: how each column was measured, and why a score stands apart."""

from dataclasses import dataclass, field
from string import ascii_lowercase

from sagan.comparison.protocols import UNKNOWN, difference_words, protocol_words
from sagan.comparison.scores import Comparison, Series
from sagan.evaluation.metric_names import DIRECTION

DECIMALS = {"fid": 2, "intra_fid": 2, "is": 2, "kid": 5}
OTHER_DECIMALS = 3
STAR = "*  the best of its column"
BRACKETS = "() not compared with the others of its column"


@dataclass(frozen=True)
class Footnotes:
    """Sentences and their letters, in the order in which they are first needed."""

    letters: dict[str, str] = field(default_factory=dict)

    def mark(self, sentence: str) -> str:
        """The letter of a sentence; a new sentence gets the next one."""
        count = len(self.letters)
        return self.letters.setdefault(sentence, ascii_lowercase[count % 26] * (1 + count // 26))

    def lines(self) -> list[str]:
        return [f"{letter}  {sentence}" for sentence, letter in self.letters.items()]


def score_text(metric: str, value: float) -> str:
    """A score with as many decimals as its metric is quoted with."""
    return f"{value:.{DECIMALS.get(metric, OTHER_DECIMALS)}f}"


def step_text(step: int | None) -> str:
    """A step with its thousands apart, "?" for one that is not known."""
    return "?" if step is None else f"{step:,}"


def heading(comparison: Comparison, metric: str, place: int) -> str:
    """The name of a column and an arrow to where better is."""
    return f"{column_name(comparison, metric, place)} {'↑' if DIRECTION[metric] > 0 else '↓'}"


def column_name(comparison: Comparison, metric: str, place: int) -> str:
    """The metric, numbered where it has several columns, one for each way in which it was measured."""
    return metric if len(comparison.shared(metric)) < 2 else f"{metric} [{place + 1}]"


def why_apart(comparison: Comparison, series: Series) -> str:
    """Why a series is not compared with the first column of its metric."""
    if series.group is None:
        return UNKNOWN
    first = comparison.shared(series.metric)[0]
    return f"measured otherwise: {difference_words(comparison.groups[series.group], comparison.groups[first])}"


def measured_notes(comparison: Comparison) -> list[str]:
    """How the scores of each column were measured; columns that were measured alike share a line."""
    named: dict[str, list[str]] = {}
    for metric in comparison.metrics():
        shared = comparison.shared(metric)
        for place, group in enumerate(shared):
            words = protocol_words(comparison.groups[group])
            if place:
                words = f"as [1], but {difference_words(comparison.groups[group], comparison.groups[shared[0]])}"
            named.setdefault(words, []).append(column_name(comparison, metric, place))
    return [f"{', '.join(names)}: {words}" for words, names in named.items()]


def scoreless_note(comparison: Comparison) -> list[str]:
    """Which runs have none of the scores that are shown."""
    scored = {series.run for series in comparison.series}
    names = [run.name for number, run in enumerate(comparison.runs) if number not in scored]
    return [f"not scored: {', '.join(names)}"] if names else []


def warning_notes(comparison: Comparison) -> list[str]:
    """The warnings that stand beside the newest scores, each once with the runs that have it."""
    said: dict[str, dict[str, None]] = {}
    for series in comparison.series:
        for warning in series.newest.warnings:
            said.setdefault(warning, {})[comparison.runs[series.run].name] = None
    return [f"{', '.join(names)}: warning: {warning}" for warning, names in said.items()]

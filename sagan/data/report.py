"""The data doctor: what it knows of, what it found, and how it says so."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sagan.config.schema import Settings
from sagan.data.sources import Problem

EXAMPLES = 3
IMBALANCE = 10  # largest class over smallest, above which a warning is due

CONVERTED = {
    "grayscale": "grayscale, copied to three channels",
    "palette": "palette, looked up",
    "cmyk": "CMYK, converted to RGB",
    "sixteen_bit": "16 bits a channel, scaled to 8",
    "opaque_alpha": "with an alpha channel that hides nothing, dropped",
    "rotated": "turned upright as their EXIF says",
    "upsampled": "smaller than the resolution, enlarged",
}
UNUSABLE = {
    "undecodable": "do not decode",
    "animated": "hold several frames",
    "transparent": "are transparent",
    "depth": "have pixels of no one 8-bit meaning",
    "tiny": "are tiny",
    "huge": "are huge",
    "outside": "link out of the folder",
    "nested": "lie in folders below the class folders",
    "empty_class": "are empty classes",
}
WARNINGS = {
    "duplicates": "exact copies of another image of their class",
    "contradictory": "exact copies of an image of another class",
    "imbalance": "times as many images in the largest class as in the smallest",
    "not_images": "files that are not images, ignored",
}


class Finding(Settings):
    """How often, and the names of the first few."""

    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.examples) + (", …" if self.count > len(self.examples) else "")


class Tally:
    """Counts by kind, with the names of the first few."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= EXAMPLES:
            self._examples.setdefault(kind, []).append(name)

    def findings(self, known: Iterable[str]) -> dict[str, Finding]:
        """Those of the `known` kinds that were seen, in their order."""
        seen = [kind for kind in known if self._counts[kind]]
        return {kind: Finding(count=self._counts[kind], examples=tuple(self._examples[kind])) for kind in seen}


class Report(Settings):
    """What is in a prepared folder beside its arrays: keys are those of CONVERTED, WARNINGS and UNUSABLE."""

    source: str
    resolution: int
    resize: str
    images: int
    class_counts: dict[str, int]
    converted: dict[str, Finding]
    warnings: dict[str, Finding]
    skipped: dict[str, Finding]
    content_hash: str

    def lines(self) -> list[str]:
        """The report for people: a line for each thing worth knowing."""
        head = f"{self.source}: {self.images} images at {self.resolution}x{self.resolution} ({self.resize})"
        lines = [f"{head}, {_classes(self.class_counts)}"]
        for title, texts, findings in (
            ("converted", CONVERTED, self.converted),
            ("warning", WARNINGS, self.warnings),
            ("left out", UNUSABLE, self.skipped),
        ):
            lines += [f"  {title:<9}  {f.count} {texts[kind]}: {f}" for kind, f in findings.items()]
        return lines


def refusal(source: str, problems: Sequence[Problem]) -> str:
    """At most five lines: what cannot be used, with names, and the way on."""
    tally = Tally()
    for problem in problems:
        tally.add(problem.kind, f"{problem.name} ({problem.reason})")
    kinds = sorted(tally.findings(UNUSABLE).items(), key=lambda kind: -kind[1].count)
    lines = [f"  {finding.count} {UNUSABLE[kind]}: {finding}" for kind, finding in kinds]
    if len(lines) > 3:
        lines[2:] = ["  and " + ", ".join(f"{finding.count} {UNUSABLE[kind]}" for kind, finding in kinds[2:])]
    way_on = "repair or remove them, or leave them out with --skip-bad (data.skip_bad: true)"
    return "\n".join([f"{source}: {len(problems)} of its images or folders cannot be used", *lines, f"  {way_on}"])


def duplicates(digests: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Tally:
    """Images whose digest (N,) is that of an earlier one: of the same class, or of another (contradictory labels)."""
    order = np.argsort(digests, kind="stable")
    is_first = np.r_[True, digests[order][1:] != digests[order][:-1]]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    found = Tally()
    for original, copy in sorted(zip(first[~is_first].tolist(), order[~is_first].tolist(), strict=True)):
        kind = "duplicates" if labels[copy] == labels[original] else "contradictory"
        found.add(kind, f"{names[copy]} = {names[original]}")
    return found


def imbalance(class_counts: dict[str, int]) -> dict[str, Finding]:
    """A finding when the largest class holds more than ten times the images of the smallest."""
    if not class_counts:
        return {}
    by_size = sorted(class_counts, key=lambda name: class_counts[name])
    small, large = by_size[0], by_size[-1]
    if class_counts[large] <= IMBALANCE * class_counts[small]:
        return {}
    examples = tuple(f"{name} {class_counts[name]}" for name in (large, small))
    return {"imbalance": Finding(count=class_counts[large] // class_counts[small], examples=examples)}


def _classes(counts: dict[str, int]) -> str:
    if not counts:
        return "no labels"
    fewest, most = min(counts.values()), max(counts.values())
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    names = Finding(count=len(counts), examples=tuple(counts)[:10])
    return f"{len(counts)} classes of {each}: {names}"


ROWS, COLUMNS = 16, 10
SMALLEST_CELL = 64  # pixels; smaller images are enlarged by a whole factor
MARGIN = 110  # pixels for the names


def contact_sheet(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Image.Image:
    """From uint8 (N, R, R, 3) and labels (N,): the first 16 classes, 10 images of each; without classes 10 × 10."""
    rows = _rows(labels, class_names)
    scale = max(1, SMALLEST_CELL // images.shape[1])
    cell = images.shape[1] * scale
    margin = MARGIN if class_names else 0
    sheet = Image.new("RGB", (margin + COLUMNS * cell, len(rows) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, members) in enumerate(rows):
        pen.text((6, y * cell + cell // 2), name[:16].encode("ascii", "replace").decode(), fill="black", anchor="lm")
        for x, index in enumerate(members.tolist()):
            image = Image.fromarray(images[index]).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + x * cell, y * cell))
    return sheet


def _rows(labels: np.ndarray, class_names: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    """(name, indices) of each row."""
    if class_names:
        return [(name, _spread(np.flatnonzero(labels == c), COLUMNS)) for c, name in enumerate(class_names[:ROWS])]
    chosen = _spread(np.arange(len(labels)), COLUMNS * COLUMNS)
    return [("", chosen[i : i + COLUMNS]) for i in range(0, len(chosen), COLUMNS)]


def _spread(members: np.ndarray, count: int) -> np.ndarray:
    return members[np.unique(np.linspace(0, len(members) - 1, count).astype(int))]

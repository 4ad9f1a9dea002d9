"""The report of data preparation: problems of images, warnings, and a contact sheet."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sagan.config.schema import Settings
from sagan.data.files import Problem
from sagan.utils.images import image_grid, name_rows

EXAMPLES = 3
IMBALANCE = 10  # largest class over smallest, above which to warn

CONVERTED = {
    "grayscale": "grayscale, converted to RGB (--channels 1 keeps one channel)",
    "color": "colored, converted to grayscale",
    "palette": "palette, converted to RGB",
    "cmyk": "CMYK, converted to RGB",
    "sixteen_bit": "16 bits per channel, reduced to 8",
    "opaque_alpha": "opaque alpha channel, dropped",
    "rotated": "rotated by their EXIF orientation",
    "upsampled": "smaller than the resolution, enlarged",
}
UNUSABLE = {
    "undecodable": "cannot be decoded",
    "animated": "have several frames",
    "transparent": "are transparent",
    "depth": "have an unsupported pixel format",
    "tiny": "are too small",
    "huge": "are too large",
    "outside": "are links out of the folder",
    "nested": "are below the class folders",
    "empty_class": "are empty class folders",
    "heif": "need pillow-heif (pip install 'sagan[heif]')",
    "unsafe": "are links, or lead out of the archive",
    "unlabelled": "have no label",
    "missing": "have a label but no image",
    "contradiction": "have several labels",
}
WARNINGS = {
    "duplicates": "exact copies of another image of their class",
    "contradictory": "exact copies of an image of another class",
    "imbalance": "times as many images in the largest class as in the smallest",
    "unread": "images in an unsupported format, left out",
    "not_images": "files that are not images, ignored",
}


class Finding(Settings):
    """How often something was found, and the first names."""

    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.examples) + (", …" if self.count > len(self.examples) else "")


class Tally:
    """Counts by kind, with the first names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= EXAMPLES:
            self._examples.setdefault(kind, []).append(name)

    def findings(self, known: Iterable[str]) -> dict[str, Finding]:
        """Findings of the `known` kinds, in their order."""
        seen = [kind for kind in known if self._counts[kind]]
        return {kind: Finding(count=self._counts[kind], examples=tuple(self._examples[kind])) for kind in seen}


class Report(Settings):
    """Content of report.json. The keys of findings are those of CONVERTED, WARNINGS and UNUSABLE."""

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
        """The report as text, one line per finding."""
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
    """An error message of at most five lines: which images cannot be used, and what to do."""
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
    """Find images whose digest (N,) equals that of an earlier one, of the same class or of another one."""
    order = np.argsort(digests, kind="stable")
    is_first = np.r_[True, digests[order][1:] != digests[order][:-1]]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    found = Tally()
    for original, copy in sorted(zip(first[~is_first].tolist(), order[~is_first].tolist(), strict=True)):
        kind = "duplicates" if labels[copy] == labels[original] else "contradictory"
        found.add(kind, f"{names[copy]} = {names[original]}")
    return found


def imbalance(class_counts: dict[str, int]) -> dict[str, Finding]:
    """A finding if the largest class has more than ten times as many images as the smallest."""
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


def contact_sheet(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """A grid of some of the images uint8 (N, R, R, 3): 10 of each of the first 16 classes, or 100 without classes."""
    names = class_names[:ROWS]
    groups = [np.flatnonzero(labels == label) for label in range(len(names))] or [np.arange(len(labels))]
    rows = []
    for members in groups:
        places = np.linspace(0, len(members) - 1, COLUMNS if names else COLUMNS**2).astype(int)
        chosen = images[members[np.unique(places)]]
        rows += [chosen, np.full((-len(chosen) % COLUMNS, *images.shape[1:]), 255, np.uint8)]
    grid = image_grid(np.concatenate(rows), COLUMNS, scale=max(1, SMALLEST_CELL // images.shape[1]))
    return name_rows(grid, [name[:16] for name in names]) if names else grid

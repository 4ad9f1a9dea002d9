"""Findings, warnings and the text of the report."""

import numpy as np

from sagan.data.files import Problem
from sagan.data.report import CONVERTED, UNUSABLE, WARNINGS, Finding, Report, Tally, duplicates, imbalance, refusal


def test_tally_counts_all_and_names_the_first():
    tally = Tally()
    for i in range(1000):
        tally.add("palette", f"{i}.png")
    tally.add("grayscale", "g.png")
    findings = tally.findings(CONVERTED)
    assert list(findings) == ["grayscale", "palette"]
    assert findings["palette"] == Finding(count=1000, examples=("0.png", "1.png", "2.png"))
    assert str(findings["palette"]) == "0.png, 1.png, 2.png, …"
    assert str(findings["grayscale"]) == "g.png"


def test_duplicates_within_and_across_classes():
    digests = np.array([7, 5, 7, 9, 7, 5], np.uint64)
    labels = np.array([0, 1, 0, 0, 1, 1])
    found = duplicates(digests, labels, list("abcdef")).findings(WARNINGS)
    assert found == {
        "duplicates": Finding(count=2, examples=("c = a", "f = b")),
        "contradictory": Finding(count=1, examples=("e = a",)),
    }
    assert duplicates(np.arange(5, dtype=np.uint64), np.zeros(5, int), list("abcde")).findings(WARNINGS) == {}


def test_imbalance_begins_above_ten():
    assert imbalance({"a": 100, "b": 10}) == {}
    assert imbalance({"a": 3, "b": 101, "c": 10})["imbalance"] == Finding(count=33, examples=("b 101", "a 3"))
    assert imbalance({}) == {}


def test_refusal_names_files_in_five_lines_at_most():
    problems = [Problem(kind, f"{kind}{i}.png", "why") for n, kind in enumerate(UNUSABLE) for i in range(n + 1)]
    lines = refusal("pets", problems).splitlines()
    assert len(lines) == 5
    assert lines[0] == "pets: 105 of its images or folders cannot be used"
    assert "contradiction0.png (why), contradiction1.png (why), contradiction2.png (why), …" in lines[1]
    assert all(any(text in line for line in lines) for text in UNUSABLE.values())
    assert "--skip-bad" in lines[-1]
    assert len(refusal("pets", problems[:1]).splitlines()) == 3


def test_report_says_everything_found():
    report = Report(
        source="pets", resolution=32, resize="crop", images=9, class_counts={"cat": 4, "dog": 5},
        converted={"cmyk": Finding(count=2, examples=("a.jpg", "b.jpg"))},
        warnings={"duplicates": Finding(count=1, examples=("c.png = d.png",))},
        skipped={"tiny": Finding(count=1, examples=("e.png",))}, content_hash="0",
    )  # fmt: skip
    assert report.lines() == [
        "pets: 9 images at 32x32 (crop), 2 classes of 4 to 5: cat, dog",
        "  converted  2 CMYK, converted to RGB: a.jpg, b.jpg",
        "  warning    1 exact copies of another image of their class: c.png = d.png",
        "  left out   1 are too small: e.png",
    ]

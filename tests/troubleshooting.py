"""The messages that docs/troubleshooting.md explains, and which of them its cases cannot provoke."""

import re
from pathlib import Path

TABLE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"

# row -> the test that provokes it, and words of the message there: they need minutes, or another installation
ELSEWHERE = {
    "ONNX needs …, not installed here: …": ("sampling/test_export.py", "not installed here"),
    "weights of … GiB: an ONNX file holds 2; …": ("sampling/test_export.py", "an ONNX file holds 2"),
    "torch … cannot write this generator as ONNX (…); …": ("sampling/test_export.py", "cannot write this generator"),
    "…: all rows of its map are … million weights per image, the page holds … million; …": (
        "inspection/test_page.py", "million weights per image"
    ),
    "the maps of … images need about … MB, a page holds …; …": ("inspection/test_page.py", "MB, a page holds"),
    "…: torchvision would unpickle this file, …": ("trust/test_hostile_files.py", "would unpickle this file"),
    "…: … claims … bytes, more than can be packed into this file": (
        "trust/test_hostile_archives.py", "more than can be packed"
    ),
    "…: says …, its tensors hold … numbers; one is not of the other": (
        "trust/test_hostile_files.py", "its tensors hold"
    ),
}  # fmt: skip

# row -> why no test provokes it
NOWHERE = {
    "… processes were started, Accelerate sees … on …; …": "several processes on a Mac's GPU",
    "…: the processes see different checkpoints there (steps …); …": "two machines without a shared folder",
    "…: its images differ from the generator's by up to …": "an exporter that is wrong",
    "--opset …: torch … cannot write it; …": "a torch whose exporter has no such version, and does not say so",
    "…: … has … …, more than this table can need": "a table of over 1 GiB",
}


def rows() -> list[str]:
    """The messages of the table, in its order; … stands for anything."""
    return re.findall(r"^\| `{1,2} ?(.+?) ?`{1,2} \|", TABLE.read_text(), re.MULTILINE)


def pattern(row: str) -> str:
    """A regular expression for the messages that a row explains."""
    return ".*".join(map(re.escape, row.split("…")))

"""`make docs` builds the documentation, and refuses broken links and references."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sagan
from sagan.attention import ATTENTION

ROOT = Path(__file__).parent.parent
FOLDERS = ["docs", "sagan", "benchmarks", "configs"]
pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with all that the site is made of."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(folder: Path) -> tuple[int, str]:
    """What `make docs` does, with this Python: its exit code and output."""
    recipe = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (options,) = re.findall(r"/mkdocs (build .*)", recipe)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *options.split()],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_reference_is_complete_and_nothing_comes_from_another_host(copy: Path) -> None:
    code, output = build(copy)
    assert code == 0, output
    pages = {path.name: path.read_text() for path in (copy / "site").rglob("*.html")}
    assert [name for name in sagan.__all__ if f'id="sagan.{name}"' not in pages["api.html"]] == []
    known = {f"sagan.attention.{name}.{kind.__name__}" for name, kind in ATTENTION.items()}
    assert known <= set(re.findall(r'id="([\w.]+)"', pages["api-attention.html"]))
    loaded = r"<(?:link|script|img|iframe)\b[^>]*(?:href|src)=\"?(?:https?:)?//[^>]*>"
    assert [found for text in pages.values() for found in re.findall(loaded, text)] == []
    assert "fonts.googleapis" not in "".join(pages.values())


@pytest.mark.parametrize(
    "broken",
    ["[a page](nowhere.md)", "[a part](data.md#nowhere)", "[a file](../sagan/nowhere.py)", "::: sagan.nowhere"],
)
def test_a_broken_link_or_reference_is_an_error(copy: Path, broken: str) -> None:
    with (copy / "docs" / "training.md").open("a") as page:
        page.write(f"\n{broken}\n")
    code, output = build(copy)
    assert code != 0
    assert "nowhere" in output

"""The house rules that a machine can check: floors, length of files and functions."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "sagan").rglob("*.py"), ROOT / "train.py", ROOT / "sample.py"])
LONGEST_FILE, LONGEST_FUNCTION = 250, 50


def test_floors():
    """Breaks when a file imports from its own floor or one above, or a new file has no floor."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea_and_a_function_one_screen(path: Path):
    """Breaks when a file or a function outgrows its limit."""
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno + 1 > LONGEST_FUNCTION]

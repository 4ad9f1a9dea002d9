"""The notebooks in docs/notebooks run and show what is committed; from one, two processes are those of torchrun.

`make notebooks` runs them and keeps their outputs.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from processes import train_in_two
from tiny import files_of, write_config

from sagan.data.dataset import PreparedData

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
BYTES = 600_000
TWO = """
from accelerate import notebook_launcher
import sagan

def train():
    sagan.train("config.yaml", out="notebook", quiet=True)

notebook_launcher(train, num_processes=2)
"""


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run it in a kernel of its own. CellExecutionError if a cell fails."""
    client = NotebookClient(
        notebook, timeout=500, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # the other cores are in use


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell shows: texts on stdout, pictures, tables, values."""
    return [[kind for output in cell.get("outputs", []) for kind in shown_by(output)] for cell in notebook.cells]


def shown_by(output: nbformat.NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return ["stdout"] if output.name == "stdout" else []
    kinds = [kind for kind in output.data if kind != "text/plain"]
    return kinds or ["text/plain"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_presentable(path: Path) -> None:
    notebook, text = nbformat.read(path, 4), path.read_text()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|work)/\S*", re.sub(r'"image/png": ".*"', "", text)) == []
    assert len(text) < BYTES
    links = re.findall(r"\]\(([^)#]+)", "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))
    assert [link for link in links if not link.startswith("https:") and not (path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_committed(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, 4)
    committed = shown(notebook)
    run(notebook, tmp_path)
    assert shown(notebook) == committed
    assert "Warning" not in "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_two_processes_from_a_notebook_are_those_of_torchrun(tmp_path: Path, data: PreparedData) -> None:
    config = write_config(tmp_path / "config.yaml", data, training={"steps": 2})
    train_in_two(config, tmp_path / "torchrun")
    notebook = new_notebook(cells=[new_code_cell(TWO), new_code_cell("sagan.Run('notebook')")])
    run(notebook, tmp_path)
    assert shown(notebook)[1] == ["image/png"]
    assert files_of(tmp_path / "notebook" / "snapshots") == files_of(tmp_path / "torchrun" / "snapshots")


def renew(path: Path) -> None:
    """Run it and keep its outputs without messages on stderr and texts beside pictures; pictures have a palette."""
    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for data in (output.data for output in cell.outputs if len(output.get("data", {})) > 1):
            del data["text/plain"]
            if "image/png" in data:
                picture, file = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))), io.BytesIO()
                picture.convert("RGB").quantize(256).save(file, "PNG", optimize=True)
                data["image/png"] = base64.b64encode(file.getvalue()).decode()
    notebook.metadata.language_info = {"name": "python"}  # without the version of this Python
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else NOTEBOOKS:
        renew(path)

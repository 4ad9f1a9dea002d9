"""The wheel works on its own: the configs are inside, and a run needs no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_trains_a_shipped_config(tmp_path: Path) -> None:
    """Build the wheel, install it into a fresh environment, and train two steps from an empty folder."""

    def run(*command: object) -> str:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=empty, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # the dependencies of this environment, without its editable install of sagan: nested .pth files are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    sagan = tmp_path / "fresh" / "bin" / "sagan"
    assert "shapes32 " in run(sagan, "configs")
    assert run(python, "-c", "import sagan; print(sagan.__file__)").startswith(str(site))
    short = ["training.steps=2", "training.batch_size=4", "evaluate.every=0", "generator.channels=4"]
    run(sagan, "train", "shapes32", "--out", "run", "--device", "cpu", *(word for s in short for word in ("--set", s)))
    assert (empty / "run" / "snapshots" / "00000002" / "model.safetensors").is_file()

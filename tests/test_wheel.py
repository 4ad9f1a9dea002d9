"""The wheel and the sdist work on their own: the configs are inside, and a run needs no checkout."""

import os
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m build` writes: the sdist, and beside it the wheel made from it."""
    folder = tmp_path_factory.mktemp("build")
    run(folder, sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    (wheel,) = sdist.parent.glob("*.whl")
    return wheel


def run(folder: Path, *command: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def required(name: str, found: dict[str, Distribution]) -> None:
    """Collect a distribution of this environment and all it requires, without extras."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            key = requirement.name.lower().replace("_", "-")
            try:
                if key not in found:
                    found[key] = distribution(key)
                    required(key, found)
            except PackageNotFoundError:  # of another platform
                pass


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The programs of a new environment that holds links to what sagan requires without extras, but not sagan."""
    venv.create(tmp_path / "fresh", with_pip=True)
    programs, found = tmp_path / "fresh" / "bin", dict[str, Distribution]()
    site = Path(
        run(tmp_path, programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    required("sagan", found)
    for each in found.values():
        for top in {file.parts[0] for file in each.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(each.locate_file(top))))
    return programs


@pytest.fixture
def fresh(bare: Path, wheel: Path) -> Path:
    run(bare, bare / "python", "-m", "pip", "install", "--no-deps", wheel)
    return bare


IMPORTS = """
import importlib, pkgutil, sagan
for module in pkgutil.walk_packages(sagan.__path__, "sagan."):
    if module.name != "sagan.__main__":
        importlib.import_module(module.name)
"""


EXTRAS = {"export": ["onnx", "onnxscript", "onnxruntime"], "h5": ["h5py"], "heif": ["pillow_heif"], "hub": ["datasets"]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_what_its_feature_imports(extra: str, fresh: Path, wheel: Path, tmp_path: Path) -> None:
    """Every module imports without the extra, whose packages come with it alone."""
    names = EXTRAS[extra]
    run(tmp_path, fresh / "python", "-c", IMPORTS)
    present = f"from importlib.util import find_spec; print([*map(find_spec, {names})])"
    assert run(tmp_path, fresh / "python", "-c", present).strip() == str([None] * len(names))
    run(tmp_path, fresh / "python", "-m", "pip", "install", f"sagan[{extra}] @ {wheel.as_uri()}")
    run(tmp_path, fresh / "python", "-c", f"import {', '.join(names)}")


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_what_is_installed_trains_a_shipped_config(
    kind: str, tmp_path: Path, bare: Path, request: pytest.FixtureRequest
) -> None:
    """Train two steps from an empty folder."""
    empty, sagan = tmp_path / "empty", bare / "sagan"
    empty.mkdir()
    run(empty, bare / "python", "-m", "pip", "install", "--no-deps", request.getfixturevalue(kind))
    assert "shapes32 " in run(empty, sagan, "configs")
    package = Path(run(empty, bare / "python", "-c", "import sagan; print(sagan.__file__)").strip()).parent
    assert package.is_relative_to(bare.parent)
    assert (package / "py.typed").is_file()
    short = ["training.steps=2", "training.batch_size=4", "evaluate.every=0", "generator.channels=4"]
    words = [word for setting in short for word in ("--set", setting)]
    run(empty, sagan, "train", "shapes32", "--out", "run", "--device", "cpu", *words)
    assert (empty / "run" / "snapshots" / "00000002" / "model.safetensors").is_file()

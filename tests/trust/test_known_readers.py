"""Every place that reads a file is known: a new one fails here until it is in the table; then it needs traps, too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
READING = {
    "torch.load", "np.load", "numpy.load", "yaml.load", "yaml.safe_load", "yaml.load_all", "json.load", "json.loads",
    "Image.open", "zipfile.ZipFile", "tarfile.open", "load_file", "safe_open", "hf_hub_download", "snapshot_download",
    "torch.hub.load", "torch.jit.load", "torch.export.load", "onnxruntime.InferenceSession", "onnx.load", "h5py.File",
    "np.lib.format.read_array", "np.lib.format.open_memmap", "np.fromfile", "np.loadtxt", "np.genfromtxt", "np.memmap",
    "iio.imread", "imageio.imread", "opener.open", "urlopen", "eval", "exec", "compile", "__import__",
    "importlib.import_module", "os.system",
}  # fmt: skip
NEVER = ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle")
KNOWN = {
    "sagan/config/load.py": {"yaml.load"},  # with a safe loader
    "sagan/data/prepare.py": {"np.lib.format.open_memmap"},  # what it has just written
    "sagan/data/dataset.py": {"np.lib.format.open_memmap"},
    "sagan/data/files.py": {"zipfile.ZipFile", "tarfile.open", "Image.open"},  # in place, see test_files.py
    "sagan/data/labels.py": {"json.loads"},
    "sagan/evaluation/extractors.py": {"torch.hub.load", "torch.load", "opener.open"},  # DINOv2's code, weights
    "sagan/evaluation/features.py": {"np.load"},  # its own cache
    "sagan/evaluation/fid.py": {"json.loads"},
    "sagan/experiments/ablation.py": {"yaml.safe_load"},  # the command line
    "sagan/inspection/explore.py": {"tarfile.open"},  # only if its SHA-256 is the pinned one
    "sagan/models/hub.py": {"load_file", "hf_hub_download"},
    "sagan/runs/importers.py": {"torch.load"},  # checkpoints of other projects
    "sagan/runs/tfhub.py": {"h5py.File"},
    "sagan/sampling/export.py": {
        "torch.export.load",
        "onnxruntime.InferenceSession",
        "json.loads",
    },  # what it has just written
    "sagan/training/logging.py": {"json.loads"},  # logs
    "sagan/utils/images.py": {"Image.open"},
    "sagan/utils/io.py": {"json.loads", "zipfile.ZipFile", "np.lib.format.read_array"},
}
REQUIRED = {
    "torch.load": "weights_only=True", "np.load": "allow_pickle=False",
    "np.lib.format.read_array": "allow_pickle=False", "Image.open": "formats=",
}  # fmt: skip


FILES = sorted([*(ROOT / "sagan").rglob("*.py"), ROOT / "train.py", ROOT / "sample.py"])


@pytest.fixture(scope="module")
def calls() -> dict[str, list[tuple[str, str]]]:
    """(name, source) of every call, by file."""
    found = {}
    for path in FILES:
        name, nodes = str(path.relative_to(ROOT)), ast.walk(ast.parse(path.read_text()))
        made = [(ast.unparse(n.func), ast.unparse(n)) for n in nodes if isinstance(n, ast.Call)]
        found[name] = made
    return found


def test_every_reader_is_known(calls: dict[str, list[tuple[str, str]]]) -> None:
    found = {path: {name for name, _ in made} & READING for path, made in calls.items()}
    assert {path: names for path, names in found.items() if names} == KNOWN


def test_readers_are_called_safely(calls: dict[str, list[tuple[str, str]]]) -> None:
    wrong = [
        source
        for path, made in calls.items()
        for name, source in made
        if name in REQUIRED and REQUIRED[name] not in source
    ]
    assert wrong == []


def test_nothing_imports_an_unpickler() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not [name for name in names if name.split(".")[0] in NEVER], path

"""The public API: the same results as the commands, data and generators in memory, errors, and the examples."""

import ast
import doctest
import importlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from command_line import sagan as command
from PIL import Image
from small_generator import small_generator
from tiny import TINY, files_of, lines_of, log_of

import sagan
from sagan.config.load import load_config, make_config
from sagan.inspection.command import health_table
from sagan.training import trainer
from sagan.training.logging import RunLog
from sagan.utils.images import read_png

ROOT = Path(__file__).parents[1]
SETTINGS = {"generator": TINY["generator"], "discriminator": TINY["discriminator"], "training": TINY["training"]}
CONFIG = SETTINGS | {"training": TINY["training"] | {"steps": 2}}
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 32, 3), np.uint8)
LABELS = np.arange(24) % 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder and home with the trained run runs/shapes."""
    folder = tmp_path_factory.mktemp("api")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        sagan.train(CONFIG, "shapes:40", out="runs/shapes", quiet=True)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`place` as working folder; a folder for one test."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    return tmp_path


# --- the names


@pytest.mark.parametrize("name", sagan.__all__)
def test_the_example_of_each_name_runs(name: str, here: Path) -> None:
    found = getattr(sagan, name)
    names = {"sagan": sagan, "np": np, "torch": torch}
    tests = doctest.DocTestFinder(recurse=False).find(found, name, globs=names)
    examples = [example for test in tests for example in test.examples]
    assert examples, f"{name} has no example"
    if name == "compare":
        sagan.train(CONFIG, "shapes:40", out="runs/new", changes={"seed": 1}, quiet=True)
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert said == []


def test_every_name_is_in_the_reference_and_visible() -> None:
    text = (ROOT / "docs/python.md").read_text()
    assert [name for name in sagan.__all__ if f"sagan.{name}" not in text] == []
    assert set(sagan.__all__) == set(sagan._MODULES) <= set(dir(sagan))
    assert all(inspect.getdoc(getattr(sagan, name)) for name in sagan.__all__)
    declared = re.findall(r"^    from (\S+) import (\w+) as \2$", (ROOT / "sagan/__init__.py").read_text(), re.M)
    assert {name: module for module, name in declared} == sagan._MODULES
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        importlib.import_module("sagan").smaple  # noqa: B018


def test_the_calls_in_the_reference_fit() -> None:
    text = (ROOT / "docs/python.md").read_text() + (ROOT / "README.md").read_text()
    calls = 0
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sagan."):
                function = getattr(sagan, ast.unparse(node.func).removeprefix("sagan."))
                inspect.signature(function).bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
                calls += 1
    assert calls > 10


def test_the_import_is_fast_and_without_torch() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import sagan; print(time.perf_counter() - start);"
        "dir(sagan), sagan.UserError; print(*sys.modules)"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
        seconds, modules = done.stdout.splitlines()
        times.append(float(seconds))
        assert not {"torch", "numpy", "pydantic", "PIL"} & set(modules.split())
    assert min(times) < 0.05


def test_a_checker_sees_the_types_from_outside(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(
        "import sagan\nrun = sagan.train('shapes32', out='run')\nreveal_type(run)\n"
        "reveal_type(sagan.sample(run, 4))\nreveal_type(sagan.evaluate(run)['fid'])\n"
        "reveal_type(sagan.attend(run).maps)\nsagan.sample(run, sseds=4)\n"
    )
    program = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment)
    if "No module named" in done.stderr:
        pytest.skip("pyright is not installed")
    revealed = re.findall(r'is "(.+)"', done.stdout)
    assert revealed[:3] == ["Run", "Samples", "float"], done.stdout
    assert revealed[3].startswith("dict[str, ndarray["), done.stdout
    assert 'No parameter named "sseds"' in done.stdout
    assert "1 error" in done.stdout


# --- each function is its command


def test_train_is_the_command(here: Path) -> None:
    (here / "config.yaml").write_text(make_config(CONFIG).to_yaml())
    prepared = sagan.prepare("shapes:40", quiet=True)
    assert command("train", here / "config.yaml", "--out", here / "run", "--set", f"data.source={prepared.folder}") == 0
    run = sagan.train(here / "config.yaml", prepared, out=here / "api", quiet=True)
    for part in ("checkpoints", "snapshots", "samples", "config.yaml"):
        assert files_of(here / "run" / part) == files_of(here / "api" / part), part
    assert log_of(here / "run") == log_of(here / "api")
    assert (run.step, run.finished, run.stopped) == (2, True, None)
    assert [line["step"] for line in run.log] == [1, 2]


def test_prepare_is_the_command(here: Path) -> None:
    assert command("prepare", "shapes:12", "--out", here / "a", "--resolution", 64) == 0
    sagan.prepare("shapes:12", here / "b", 64, quiet=True)
    assert files_of(here / "a") == files_of(here / "b")


def test_sample_is_the_command(here: Path) -> None:
    assert (
        command("sample", "runs/shapes", "--out", here, "--seeds", "3,5", "--classes", "cross,0", "--device", "cpu")
        == 0
    )
    assert command("sample", "runs/shapes", "--out", here / "npz", "--num", 5, "--npz", "--truncation", 0.5) == 0
    images = sagan.sample("runs/shapes", [3, 5], ["cross", 0], device="cpu", quiet=True)
    for image, seed, label in zip(images, images.seeds, images.labels, strict=True):
        assert np.array_equal(read_png(here / f"seed{seed:08d}_class{label}.png"), image)
    with np.load(here / "npz" / "samples.npz") as arrays:
        again = sagan.sample("runs/shapes", 5, truncation=0.5, quiet=True)
        assert np.array_equal(arrays["images"], again)
        assert arrays["labels"].tolist() == again.labels.tolist()


def test_evaluate_is_the_command(here: Path) -> None:
    options = ("--metrics", "coherence", "--num", 16, "--repeats", 2, "--out", here / "scores.json")
    assert command("evaluate", "runs/shapes", *options) == 0
    before = len(lines_of(Path("runs/shapes/metrics.jsonl"))) if Path("runs/shapes/metrics.jsonl").exists() else 0
    scores = sagan.evaluate(sagan.Run("runs/shapes"), metrics="coherence", num=16, repeats=2, quiet=True)
    assert json.loads((here / "scores.json").read_text()) == json.loads(json.dumps(scores.to_dict()))
    added = lines_of(Path("runs/shapes/metrics.jsonl"))[before:]
    assert [line["coherence"] for line in added] == [scores["coherence"]]
    assert sagan.Run("runs/shapes").scores[-1]["coherence"] == scores["coherence"]


def test_attend_is_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--seeds", "0-1", "--network", "both", "--html", "--json")
    assert command("attend", "runs/shapes", "--out", here / "a", *options) == 0
    report = json.loads(capsys.readouterr().out)
    attention = sagan.attend("runs/shapes", 2, quiet=True)
    real = sagan.attend("runs/shapes", 2, network="discriminator", quiet=True)
    attention.save(here / "b")
    real.save(here / "b")
    attention.page().save(here / "b" / "attention.html")
    written = files_of(here / "b")
    assert len(written) == 5
    assert written == {name: content for name, content in files_of(here / "a").items() if name in written}
    assert (report["attention"], report["discriminator-real"]) == (attention.health, real.health)
    assert 0 < attention.health["attention.8x8"]["untrained"] <= 1
    assert attention.maps["attention.8x8"].shape == (2, 1, 5, 4, 4)


def test_compare_is_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compare", "runs/shapes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == sagan.compare("runs/shapes").record()
    assert command("compare", "runs/shapes") == 0
    assert capsys.readouterr().out == f"{sagan.compare(['runs/shapes'])}\n"


# --- in memory


class Pictures(torch.utils.data.Dataset):
    """(image, label) as torchvision gives them; `kind` of the images."""

    classes = ("low", "high", "far")

    def __init__(self, kind: Callable[[np.ndarray], Any]) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(NOISE)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.kind(NOISE[index]), int(LABELS[index])


KINDS = {
    "pil": Image.fromarray,
    "array": np.asarray,
    "uint8": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "float": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_data_set_gives_what_its_array_gives(kind: Callable[[np.ndarray], Any], here: Path) -> None:
    array = sagan.prepare((NOISE, LABELS), here / "array", quiet=True)
    found = sagan.prepare(Pictures(kind), here / "set", quiet=True)
    assert np.array_equal(found.images, array.images)
    assert np.array_equal(found.labels, LABELS)
    assert found.manifest.class_names == ("low", "high", "far")
    assert array.manifest.class_names == ("0", "1", "2")
    again = sagan.prepare((NOISE, LABELS), quiet=True)  # named after its content
    assert again.folder == sagan.prepare((NOISE.copy(), torch.from_numpy(LABELS)), quiet=True).folder


def test_training_on_an_array_can_be_resumed_by_the_command(here: Path) -> None:
    run = sagan.train(CONFIG, (NOISE, LABELS), out=here / "run", quiet=True)
    assert run.generator().num_classes == 3
    longer = ("--set", "training.steps=3")
    assert command("train", here / "run" / "config.yaml", "--out", here / "run", *longer) == 0
    assert run.step == 3


def test_a_generator_in_memory(here: Path) -> None:
    generator = sagan.load_snapshot("runs/shapes").train()
    assert np.array_equal(sagan.sample(generator, 9), sagan.sample("runs/shapes", 9, device="cpu"))
    one, other = (sagan.attend(source, 2, quiet=True) for source in (generator, "runs/shapes"))
    assert np.array_equal(one.maps["attention.8x8"], other.maps["attention.8x8"])
    scores = sagan.evaluate(generator, metrics="coherence", num=16, labels="uniform", quiet=True)
    same = sagan.evaluate("runs/shapes/snapshots/00000002", metrics="coherence", num=16, labels="uniform", device="cpu")
    assert scores.values == same.values
    assert generator.training


def test_images_in_memory_are_scored_as_their_files(here: Path) -> None:
    images = sagan.sample("runs/shapes", 16, quiet=True)
    np.savez(here / "images.npz", images=images)
    found, same = (sagan.evaluate(x, metrics="coherence", quiet=True).values for x in (images, here / "images.npz"))
    assert found == same


def test_attention_in_given_images(here: Path) -> None:
    images, labels = NOISE[:3, :32], [1, 1, 1]
    attention = sagan.attend("runs/shapes", 3, "grid", network="discriminator", images=(images, labels), quiet=True)
    assert np.array_equal(attention.images, images)
    assert attention.recording.labels.tolist() == labels
    assert attention.maps["trunk.attention.8x8"].shape == (3, 1, 9, 4, 4)
    with pytest.raises(sagan.UserError, match="labels go from 7 to 7; the classes are 0 to 3"):
        sagan.attend("runs/shapes", 3, network="discriminator", images=(images, [7, 7, 7]))


# --- results show themselves


def test_results_show_themselves(here: Path) -> None:
    images = sagan.sample("runs/shapes", [1, 7], "cross", quiet=True)
    sheet = images.sheet()
    assert sheet.size == (2 * 64 + 6, 64 + 15 + 4)
    assert images._repr_png_()[:4] == b"\x89PNG"
    top = np.asarray(sheet)[2:66, 2:66]
    assert np.array_equal(top, images[0].repeat(2, 0).repeat(2, 1))
    assert (np.asarray(sheet)[68:, 2:66] < 128).any()  # the caption
    part = images[1:]
    assert (part.seeds, part.labels) == (None, None)
    assert part.sheet().size == (68, 68)
    assert images.mean(axis=0)._repr_png_() is None
    many = sagan.sample("runs/shapes", 80, quiet=True)
    assert Image.open(io.BytesIO(many._repr_png_())).size == many.sheet(most=64).size != many.sheet().size
    scores = sagan.evaluate("runs/shapes", metrics="coherence", num=16, quiet=True)
    assert f"{scores['coherence']:.4f}" in scores._repr_html_()
    assert "<th>seeds</th><td>0-15</td>" in scores._repr_html_()
    attention = sagan.attend("runs/shapes", 1, quiet=True)
    assert attention._repr_png_()[:4] == b"\x89PNG"
    assert repr(attention) == "Attention(1 images, 5 points, layers attention.8x8)"
    frame = attention.page()._repr_html_()
    assert frame.startswith("<iframe sandbox=")
    assert "&lt;script" in frame
    assert "<script" not in frame
    assert sagan.Run("runs/shapes")._repr_png_()[:4] == b"\x89PNG"
    assert "<pre>shapes: 2 steps" in sagan.compare("runs/shapes")._repr_html_()


def test_a_run_is_updated_in_place_in_a_notebook(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def text(found: Any) -> str:
        return str(found.step) if isinstance(found, sagan.Run) else found["text/plain"].partition("  ")[0]

    def display(found: Any, display_id: bool, raw: bool = False) -> Any:
        shown.append(f"new {text(found)} {display_id}")
        return types.SimpleNamespace(update=lambda found, raw=False: shown.append(f"update {text(found)}"))

    shell = types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    sagan.train(CONFIG, "shapes:40", out=here / "run", changes={"training.sample_every": 1}, quiet=True)
    assert shown == ["new 1 True", "update 2"]
    shown.clear()
    sagan.train(CONFIG, "shapes:40", out=here / "said", changes={"training.sample_every": 1})
    assert shown == ["new step 1/2 True", "new 1 True", "update step 2/2", "update 2"]
    assert "step" not in capsys.readouterr().err


def test_tables_are_text_in_a_notebook(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, health = ["runs/shapes", shutil.copytree("runs/shapes", here / "copy")], {"layer": {"gamma": 0.5}}
    table, text = str(sagan.compare(runs)), health_table(health)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a kernel does
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert (str(sagan.compare(runs)), health_table(health)) == (table, text)


# --- a guest in a host program


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Python's own handler of SIGINT, which a program in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_handler")
def test_an_interrupt_saves_and_returns_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    record = RunLog.record
    during = {}

    def interrupting(log: RunLog, step: int, values: dict[str, float]) -> None:
        record(log, step, values)
        if step == 3:
            during.update({number: signal.getsignal(number) for number in before})
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLog, "record", interrupting)
    run = sagan.train(SETTINGS, "shapes:40", out=here / "run", quiet=True)
    assert (run.stopped, run.step, run.finished) == ("SIGINT", 4, False)
    assert during[signal.SIGINT] is not signal.default_int_handler
    assert {number: during[number] for number in before if number != signal.SIGINT} == {
        number: handler for number, handler in before.items() if number != signal.SIGINT
    }
    assert {number: signal.getsignal(number) for number in before} == before
    monkeypatch.setattr(RunLog, "record", record)
    assert sagan.train(SETTINGS, "shapes:40", out=here / "run", quiet=True).finished
    straight = sagan.train(SETTINGS, "shapes:40", out=here / "straight", quiet=True)
    assert files_of(run.folder / "snapshots") == files_of(straight.folder / "snapshots")


@pytest.mark.usefixtures("default_handler")
def test_training_in_a_thread_and_beside_a_handler_touches_no_handler(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = []
    monkeypatch.setattr(trainer, "caught_signals", _recording(trainer.caught_signals, watched))
    failed: list[BaseException] = []

    def work() -> None:
        try:
            sagan.train(CONFIG, "shapes:40", out=here / "thread", quiet=True)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
    own = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        sagan.train(CONFIG, "shapes:40", out=here / "host", quiet=True)
    finally:
        signal.signal(signal.SIGINT, own)
    assert watched == [[], []]


def _recording(wrapped: Callable[..., Any], calls: list) -> Callable[..., Any]:
    def call(watched: list) -> Any:
        calls.append(watched)
        return wrapped(watched)

    return call


def test_training_leaves_torch_and_accelerate_as_they_were(here: Path) -> None:
    changes = {"deterministic": True, "training.precision": "bf16"}
    sagan.train(CONFIG, "shapes:40", out=here / "a", changes=changes, quiet=True)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert AcceleratorState._shared_state == {}
    assert sagan.train(CONFIG, "shapes:40", out=here / "b", quiet=True).finished  # in another precision


def test_nothing_is_printed_on_stdout_and_quiet_is_silent(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        run = sagan.train(CONFIG, "shapes:41", out=here / f"run{quiet}", quiet=quiet)
        sagan.prepare("shapes:9", here / f"data{quiet}", quiet=quiet)
        sagan.sample(run, 2, quiet=quiet)
        sagan.evaluate(run, metrics="coherence", num=16, quiet=quiet)
        sagan.attend(run, 1, quiet=quiet).page()
        sagan.compare([run])
        out, err = capfd.readouterr()
        assert out == ""
        assert (err == "") == quiet, err


# --- mistakes


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "float array": (lambda out: sagan.prepare(NOISE / 255, out), "images is float64 (24, 40, 32, 3), expected uint8"),
    "channels first": (lambda out: sagan.prepare(NOISE.transpose(0, 3, 1, 2), out), "transpose it (0, 2, 3, 1)"),
    "too few labels": (lambda out: sagan.prepare((NOISE, LABELS[:5]), out), "labels is int64 (5,), expected one"),
    "float labels": (lambda out: sagan.prepare((NOISE, LABELS / 2), out), "labels is float64 (24,), expected one"),
    "negative labels": (lambda out: sagan.prepare((NOISE, LABELS - 1), out), "labels go from -1 to 1"),
    "no data": (lambda out: sagan.prepare(7, out), "int is neither a path, an array"),
    "normalized": (lambda out: sagan.prepare([torch.full((3, 8, 8), -1.0)], out), "Tensor float32 (8, 8, 3) from -1"),
    "a text as label": (lambda out: sagan.prepare([(NOISE[0], "cat")], out), "the label of image 0 is 'cat'"),
    "empty": (lambda out: sagan.prepare([], out), "holds no image"),
    "table": (lambda out: sagan.prepare(NOISE, out, labels="x.csv"), "give data as (images, labels)"),
    "resolution": (lambda out: sagan.prepare(NOISE, out, 48), "resolution 48 is not one of 32, 64, 128, 256"),
    "wrong size": (lambda out: sagan.train(CONFIG, sagan.prepare(NOISE, out / "p", 64), out=out / "r"),
                   "prepared at 64x64, data.resolution is 32"),
    "wrong classes": (lambda out: sagan.train(CONFIG, (NOISE, LABELS), out=out, changes={"data.num_classes": 5}),
                      "data.num_classes is 5, but"),
    "unknown setting": (lambda out: sagan.train(CONFIG, "shapes:9", out=out, changes={"training.stps": 5}),
                        "did you mean training.steps?"),
    "no setting": (lambda out: sagan.train(CONFIG, "shapes:9", out=out, changes={"seed": {1}}), "is a set, no setting"),
    "no config": (lambda out: sagan.train("shapse32", out=out), "did you mean shapes32?"),
    "no data source": (lambda out: sagan.train(CONFIG, out=out), "data.source is not set"),
    "other settings": (lambda out: sagan.train(CONFIG, "shapes:40", out="runs/shapes", changes={"seed": 5}),
                       "seed: 0 in the run, 5 now"),
    "seed": (lambda out: sagan.sample("runs/shapes", [1, 1]), "1 is given twice"),
    "negative seed": (lambda out: sagan.sample("runs/shapes", [-1]), "expected numbers and ranges"),
    "class": (lambda out: sagan.sample("runs/shapes", 2, "croos"), "did you mean cross?"),
    "device": (lambda out: sagan.sample("runs/shapes", 2, device="gpu"), "--device gpu: no such device"),
    "no snapshot": (lambda out: sagan.sample("runs/shpes", 2), "no such snapshot or run"),
    "metric": (lambda out: sagan.evaluate("runs/shapes", metrics=["fdi"]), "unknown metric 'fdi'"),
    "option": (lambda out: sagan.evaluate("runs/shapes", metrics="coherence", batchsize=3), "batchsize: extra inputs"),
    "number": (lambda out: sagan.evaluate("runs/shapes", metrics="coherence", num=1), "num: input should be greater"),
    "reference": (lambda out: sagan.evaluate(NOISE, metrics="fid"), "fid: compares with real images"),
    "point": (lambda out: sagan.attend("runs/shapes", 2, [(40, 2)]), "point 40,2 lies outside the image"),
    "points": (lambda out: sagan.attend("runs/shapes", 2, [0.5, 0.5]), "points: float64 (2,); expected a number"),
    "images": (lambda out: sagan.attend(NOISE, 2), "holds images; give a run"),
    "no attention": (lambda out: sagan.attend(small_generator("generator.attention={}"), 2), "has no attention"),
    "no run": (lambda out: sagan.compare(out), "not a run"),
    "no score": (lambda out: sagan.compare("runs/shapes", "fid"), "none of these runs has it"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_of_one_line(mistake: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(sagan.UserError) as raised:
        call(here)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == (2 if mistake == "other settings" else 1)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("sample", "runs/shapes", "--num", "2", "--classes", "x"), lambda: sagan.sample("runs/shapes", 2, "x")),
        (("evaluate", "nowhere/at/all"), lambda: sagan.evaluate("nowhere/at/all")),
        (("attend", "runs/shapes", "--points", "99"), lambda: sagan.attend("runs/shapes", points=99)),
        (("compare", "runs"), lambda: sagan.compare("runs")),
        (("train", "nothing"), lambda: sagan.train("nothing", out="out")),
        (("prepare", "nothing"), lambda: sagan.prepare("nothing", "out")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_mistake_has_the_line_of_the_command(
    arguments: tuple[str, ...], call: Callable[[], Any], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = () if arguments[0] in ("evaluate", "compare") else ("--out", "out")
    assert command(*arguments, *out) == 2
    line = capfd.readouterr().err
    with pytest.raises(sagan.UserError) as raised:
        call()
    assert line == f"sagan: {raised.value}\n"


def test_a_full_disk_is_an_error_of_the_user(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "samples")

    monkeypatch.setattr("sagan.api.sample_images", full)
    with pytest.raises(sagan.UserError, match="samples: the disk is full"):
        sagan.sample("runs/shapes", 2)


def test_a_config_in_each_form_is_the_same() -> None:
    from sagan.config.load import as_config

    changes = {"training.steps": np.int64(7), "training.init_from": Path("runs/x"), "ema.half_life": 1e-5}
    words = ["training.steps=7", "training.init_from=runs/x", "ema.half_life=0.00001"]
    expected = load_config("shapes32", words)
    assert as_config("shapes32", changes) == expected
    assert as_config(load_config("shapes32"), changes) == expected
    assert as_config(load_config("shapes32").to_dict(), changes) == expected

"""Preparation: what it writes, atomically, without replacing anything else; interruptions, concurrency, memory."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import sagan
from PIL import Image

from sagan.config.schema import DataSettings
from sagan.data.dataset import PreparedData
from sagan.data.files import heif_opens
from sagan.data.prepare import ensure_prepared, prepare
from sagan.utils.errors import UserError
from sagan.utils.io import TEMPORARY

PREPARE = "import sys; from sagan.data.prepare import prepare; prepare(sys.argv[1], sys.argv[2], 32)"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "prepared"


def refusal(source: Path | str, out: Path, **options) -> str:
    """The message; nothing may be left behind."""
    before = _listing(out.parent)
    with pytest.raises(UserError) as error:
        prepare(str(source), out, options.pop("resolution", 32), **options)
    assert _listing(out.parent) == before
    assert len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_pixels_labels_and_manifest(folder: Path, out: Path):
    data = prepare(str(folder), out, 64, resize="squash")
    for i, (name, k) in enumerate((name, k) for name in ("cat", "dog") for k in range(4)):
        with Image.open(folder / name / f"{k}.png") as image:
            expected = image.resize((64, 64), Image.Resampling.LANCZOS)
        assert np.array_equal(data.images[i], np.asarray(expected))
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    manifest = data.manifest
    assert (manifest.count, manifest.resolution, manifest.num_classes, manifest.resize) == (8, 64, 2, "squash")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.source == "pets"
    assert manifest.content_hash == hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()
    assert str(folder.parent) not in (out / "manifest.json").read_text() + (out / "report.json").read_text()
    assert np.array_equal(np.load(out / "images.npy"), data.images)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[1] == 2 + 2 * (64 + 2)
    assert _listing(out.parent) == ["prepared"]


def test_same_bytes_every_time(folder: Path, out: Path, tmp_path: Path):
    for i in range(100):
        Image.new("RGB", (40 + i, 40), (i, 0, 0)).save(folder / "cat" / f"x{i}.png")
    first = prepare(str(folder), out, 32)
    second = prepare(str(folder), tmp_path / "again", 32)
    assert (out / "images.npy").read_bytes() == (tmp_path / "again" / "images.npy").read_bytes()
    assert first.manifest == second.manifest


def test_a_second_time_does_nothing(folder: Path, out: Path):
    said: list[str] = []
    prepare(str(folder), out, 32, report=said.append)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said.clear()
    prepare(str(folder), out, 32, report=said.append)
    assert said == [f"{out}: already prepared from pets, nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_what_is_there_is_never_replaced(folder: Path, out: Path, tmp_path: Path):
    prepare(str(folder), out, 32)
    assert "with resolution 32, not 64" in refusal(folder, out, resolution=64)
    assert "with resize crop, not squash" in refusal(folder, out, resize="squash")
    assert "with source pets, not cat" in refusal(folder / "cat", out)
    Image.new("RGB", (32, 32)).save(folder / "cat" / "new.png")
    assert "files of pets have changed" in refusal(folder, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert "not prepared data" in refusal(folder, tmp_path / "mine")
    assert "not prepared data" in refusal(folder, tmp_path / "mine" / "thesis.txt")
    assert "within the source" in refusal(folder, folder / "prepared")
    assert "within the source" in refusal(folder, folder)
    assert "prepared data already" in refusal(out, tmp_path / "twice")
    (tmp_path / "void").mkdir()
    assert prepare(str(folder), tmp_path / "void", 32).folder == tmp_path / "void"


def test_unusable_images_are_refused_by_name_or_left_out(folder: Path, out: Path, photo):
    (folder / "cat" / "1.png").write_text("not a picture")
    photo(1).save(folder / "dog" / "0.png", save_all=True, append_images=[photo(2)])
    (folder / "cow").mkdir()
    assert "cow" in refusal(folder, out)
    (folder / "cow" / "x.png").write_text("")
    message = refusal(folder, out)
    assert "3 of its images" in message
    assert "cat/1.png (not an image), cow/x.png" in message
    assert "1 have several frames: dog/0.png" in message

    data = prepare(str(folder), out, 32, skip_bad=True)
    assert data.manifest.class_names == ("cat", "dog")
    assert data.manifest.skipped == 3
    assert data.labels.tolist() == [0] * 3 + [1] * 3
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in skipped] == [
        ["cat/1.png", "undecodable"],
        ["cow/x.png", "undecodable"],
        ["dog/0.png", "animated"],
    ]
    with Image.open(folder / "cat" / "2.png") as image:
        assert np.array_equal(data.images[1], np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)))


def test_nothing_useful_left(folder: Path, out: Path):
    for i in range(4):
        (folder / "cat" / f"{i}.png").write_text("")
    assert "only one class is left, dog" in refusal(folder, out, skip_bad=True)
    assert "no image is left" in refusal(folder / "cat", out, skip_bad=True)


def test_report_of_the_doctor(folder: Path, out: Path, photo, capsys: pytest.CaptureFixture[str]):
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    photo(9).convert("CMYK").save(folder / "cat" / "print.jpg")
    photo(8, (20, 20)).save(folder / "cat" / "small.png")
    for name in ("notes.txt", "cat/a.AVIF"):
        (folder / name).write_text("")
    assert sagan("prepare", folder, "--out", out, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["images"] == 11
    assert report["class_counts"] == {"cat": 6, "dog": 5}
    assert report["converted"] == {
        "cmyk": {"count": 1, "examples": ["cat/print.jpg"]},
        "upsampled": {"count": 1, "examples": ["cat/small.png"]},
    }
    assert report["warnings"] == {
        "contradictory": {"count": 1, "examples": ["dog/copy.png = cat/0.png"]},
        "not_images": {"count": 1, "examples": ["notes.txt"]},
        "unread": {"count": 1, "examples": ["cat/a.AVIF"]},
    }
    assert "1 CMYK, converted to RGB: cat/print.jpg" in captured.err
    assert sagan("prepare", folder, "--out", out) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_photos_wait_for_their_library(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(4):
        (folder / "cat" / f"{i}.heic").write_text("")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif_opens.cache_clear()
    message = refusal(folder, out)
    assert "  4 need pillow-heif (pip install 'sagan[heif]'): cat/0.heic (" in message
    assert "not an image" not in message
    data = prepare(str(folder), out, 32, skip_bad=True)
    assert (data.manifest.class_counts, data.manifest.skipped) == ((4, 4), 4)
    assert "cat/0.heic\theif\tneeds pillow-heif" in (out / "skipped.txt").read_text()
    heif_opens.cache_clear()


def test_npz_and_flat_folder(folder: Path, out: Path, tmp_path: Path):
    assert prepare(str(folder / "cat"), out, 32).manifest.num_classes == 0
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    labels = np.arange(50) % 5
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    data = prepare(str(tmp_path / "a.npz"), tmp_path / "from-npz", 32)
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.labels, labels)
    assert data.manifest.class_names == ("0", "1", "2", "3", "4")


def test_training_prepares_what_is_not_prepared(folder: Path, tmp_path: Path):
    said: list[str] = []
    settings = DataSettings(source=str(folder), resolution=32)
    first = ensure_prepared(settings, tmp_path / "cache", report=said.append)
    assert first.folder.parent == tmp_path / "cache"
    assert first.folder.name.startswith("pets-32-")
    assert ensure_prepared(settings, tmp_path / "cache", report=said.append).folder == first.folder
    assert "nothing to do" in said[-1]
    Image.new("RGB", (32, 32)).save(folder / "cat" / "new.png")
    assert len(ensure_prepared(settings, tmp_path / "cache", report=said.append)) == 9

    place = tmp_path / "here"
    assert ensure_prepared(DataSettings(source=str(folder), prepared=str(place))).folder == place
    assert ensure_prepared(DataSettings(source=str(place))).folder == place


def test_training_on_data_that_do_not_fit(folder: Path, tmp_path: Path):
    prepared = str(prepare(str(folder), tmp_path / "prepared", 32).folder)
    for settings, message in (
        (DataSettings(), "data.source is not set"),
        (DataSettings(source=prepared, resolution=64), "prepared at 32x32, data.resolution is 64"),
        (DataSettings(source=prepared, num_classes=10), "num_classes is 10, but .* has 2 classes"),
        (DataSettings(source=str(folder), num_classes=10), "num_classes is 10, but .* has 2 classes"),
        (DataSettings(source=str(folder / "cat"), num_classes=2), "has no classes"),
    ):
        with pytest.raises(UserError, match=message):
            ensure_prepared(settings, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert ensure_prepared(DataSettings(source=prepared, num_classes=0)).manifest.num_classes == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_work_leaves_nothing_that_hurts(out: Path, signum: signal.Signals):
    process = _start("shapes:1000000", out)
    _wait_for(lambda: any(path.name.startswith(TEMPORARY) for path in out.parent.glob(".*")))
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not out.exists()
    if signum == signal.SIGINT:
        assert _listing(out.parent) == []
    prepare("shapes:16", out, 32)
    assert _listing(out.parent) == ["prepared"]


def test_two_at_once_do_the_work_once(out: Path):
    processes = [_start("shapes:6000", out) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum("already prepared" in text for text in errors) == 1
    assert sum("waiting" in text for text in errors) >= 1
    assert _listing(out.parent) == ["prepared"]
    assert len(PreparedData.open(out)) == 6000


def test_memory_stays_flat(tmp_path: Path, out: Path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((50, 1024, 1024, 3), np.uint8))
    code = (
        "import resource, sys; from sagan.data.prepare import prepare\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "prepare(sys.argv[1], sys.argv[2], 32)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.npz"), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 100


def _start(source: str, out: Path) -> subprocess.Popen[str]:
    """A background job of a script ignores Ctrl-C, and so would its children; a user's command does not."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, source, str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.assets
def test_cifar10_is_stored_byte_for_byte(assets: Path, out: Path):
    root = assets / "cifar10" / "test"
    data = prepare(str(root), out, 32, num_classes=10)
    names = sorted(path.name for path in root.iterdir())
    assert data.manifest.class_names == tuple(names)
    assert data.manifest.class_counts == (1000,) * 10
    assert data.manifest.source == "cifar10/test"
    for index, (label, path) in enumerate(
        (i, path) for i, n in enumerate(names) for path in sorted((root / n).iterdir())
    ):
        with Image.open(path) as image:
            assert np.array_equal(data.images[index], np.asarray(image)), path
        assert data.labels[index] == label


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

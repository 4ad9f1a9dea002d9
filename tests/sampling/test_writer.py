"""`sagan sample`: names and bytes of the files, which files it keeps, and the errors."""

import json
import resource
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from small_generator import small_generator

from sagan.runs.snapshot import save_snapshot
from sagan.sampling.writer import sample_cli
from sagan.utils.errors import UserError
from sagan.utils.images import read_png


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("snapshot") / "snapshot"
    save_snapshot(small_generator(), folder)
    return str(folder)


def sample(source: str | Path, out: Path, options: str) -> None:
    sample_cli([str(source), "--out", str(out), "--device", "cpu", *options.split()], standalone_mode=False)


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("seed*.png")}


def test_name_label_and_image_depend_on_the_seed_not_on_its_position(snapshot: str, tmp_path: Path):
    sample(snapshot, tmp_path / "some", "--seeds 12,3,7-8")
    sample(snapshot, tmp_path / "all", "--num 13")
    some, many = pngs(tmp_path / "some"), pngs(tmp_path / "all")
    assert sorted(some) == [f"seed{seed:08d}.png" for seed in (3, 7, 8, 12)]
    assert len(many) == 13
    assert all(many[name] == content for name, content in some.items())
    sample(snapshot, tmp_path / "all", "--seeds 7 --classes bar")
    assert pngs(tmp_path / "all")["seed00000007_class3.png"] == many["seed00000007.png"]  # 7 mod 4 is 3


def test_classes_truncation_and_grid(snapshot: str, tmp_path: Path):
    sample(snapshot, tmp_path / "a", "--seeds 0-2 --classes star,0 --grid")
    drawn = pngs(tmp_path / "a")
    assert sorted(drawn) == [f"seed{seed:08d}_class{label}.png" for seed in range(3) for label in (0, 2)]
    assert len(set(drawn.values())) == 6
    grid = read_png(tmp_path / "a" / "grid.png")
    assert grid.shape[0] == 2 * 34 + 2
    for row, label in enumerate((2, 0)):
        for column in range(3):
            left = grid.shape[1] - 3 * 34 + 34 * column
            image = read_png(tmp_path / "a" / f"seed{column:08d}_class{label}.png")
            assert np.array_equal(grid[2 + 34 * row : 34 + 34 * row, left : left + 32], image)
    sample(snapshot, tmp_path / "b", "--seeds 0-2 --classes star,0 --truncation 0.5")
    assert not set(pngs(tmp_path / "b").values()) & set(drawn.values())


def test_a_second_call_generates_only_the_missing_images(
    snapshot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sample(snapshot, tmp_path, "--num 11")
    first = pngs(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "seed00000009.png").unlink()
    sample(snapshot, tmp_path, "--num 11")
    assert "1 images, 10 already there" in capsys.readouterr().err
    assert pngs(tmp_path) == first
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"seed00000009.png"}


def test_samples_of_other_weights_or_settings_are_refused(snapshot: str, tmp_path: Path):
    sample(snapshot, tmp_path / "out", "--num 2")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    save_snapshot(small_generator("generator.norm_eps=1.0e-3"), tmp_path / "other")
    for source, option, message in (
        (snapshot, "--truncation 0.7", "truncation: None, now 0.7"),
        (tmp_path / "other", "", "weights"),
    ):
        with pytest.raises(UserError, match=message):
            sample(source, tmp_path / "out", f"--num 4 {option}")
    (tmp_path / "out" / "samples.json").unlink()
    with pytest.raises(UserError, match=r"seed.*\.png"):
        sample(snapshot, tmp_path / "out", "--num 4")
    before.pop("samples.json")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_npz_holds_the_same_images(snapshot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sample(snapshot, tmp_path / "a", "--seeds 5-14 --npz --grid")
    sample(snapshot, tmp_path / "b", "--seeds 5-14 --grid")
    with np.load(tmp_path / "a" / "samples.npz") as arrays:
        assert arrays["seeds"].tolist() == list(range(5, 15))
        assert arrays["labels"].tolist() == [seed % 4 for seed in range(5, 15)]
        for seed, image in zip(arrays["seeds"], arrays["images"], strict=True):
            assert np.array_equal(image, read_png(tmp_path / "b" / f"seed{seed:08d}.png"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["grid.png", "samples.json", "samples.npz"]
    assert (tmp_path / "a" / "grid.png").read_bytes() == (tmp_path / "b" / "grid.png").read_bytes()
    capsys.readouterr()
    sample(snapshot, tmp_path / "a", "--seeds 5-14 --npz")
    assert "0 images, 10 already there" in capsys.readouterr().err
    with pytest.raises(UserError, match="other seeds"):
        sample(snapshot, tmp_path / "a", "--seeds 5-15 --npz")


def test_interpolation_begins_and_ends_at_the_seeds(snapshot: str, tmp_path: Path):
    sample(snapshot, tmp_path, "--interpolate 1 6 --classes 1,2 --frames 9")
    sample(snapshot, tmp_path, "--interpolate 1 6 --frames 4 --format mp4")
    sample(snapshot, tmp_path, "--seeds 1,6 --classes 1-2")
    name = "interpolation00000001-00000006"
    both, one = read_png(tmp_path / f"{name}_class1-2.png"), read_png(tmp_path / f"{name}.png")
    start, end = read_png(tmp_path / "seed00000001_class1.png"), read_png(tmp_path / "seed00000006_class2.png")
    assert both.shape == (2 * 34 + 2, 8 * 34 + 2, 3)
    assert np.array_equal(both[2:34, 2:34], start)
    assert np.array_equal(both[36:68, 2:34], end)  # the ninth
    assert np.array_equal(one[2:34, 2:34], start)  # without --classes the class of seed 1
    assert np.array_equal(one[2:34, 104:136], read_png(tmp_path / "seed00000006_class1.png"))
    assert imageio.imread(tmp_path / f"{name}_class1-2.gif").shape == (9, 256, 256, 3)
    assert imageio.imread(tmp_path / f"{name}.mp4", plugin="FFMPEG").shape == (4, 256, 256, 3)


def test_without_classes_the_labels_in_npz_are_minus_one(tmp_path: Path):
    save_snapshot(small_generator(num_classes=0), tmp_path / "snapshot")
    sample(tmp_path / "snapshot", tmp_path / "out", "--num 2")
    sample(tmp_path / "snapshot", tmp_path / "out", "--interpolate 0 1 --frames 2")
    sample(tmp_path / "snapshot", tmp_path / "npz", "--num 2 --npz")
    assert len(pngs(tmp_path / "out")) == 2
    with np.load(tmp_path / "npz" / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [-1, -1]


def test_a_disk_that_fills_up_leaves_whole_files(tmp_path: Path):
    save_snapshot(small_generator("data.resolution=64", channels=4), tmp_path / "snapshot")
    source, out = tmp_path / "snapshot", tmp_path / "out"
    sample(source, tmp_path / "all", "--num 30")
    expected = pngs(tmp_path / "all")
    sizes = [len(expected[name]) for name in sorted(expected)]
    largest = sizes.index(max(sizes))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[largest] - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            sample(source, out, "--num 30")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = pngs(out)
    assert len(left) == largest > 2
    assert {path.name for path in out.iterdir()} == {*left, "samples.json"}
    sample(source, out, "--num 30")
    assert pngs(out) == expected


def test_two_processes_write_the_same_files_as_one(snapshot: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        sample(snapshot, tmp_path / "two", "--num 21 --grid")
        assert (tmp_path / "two" / "grid.png").exists() == (rank == "1")  # the last one writes it
    assert "11 images (process 1 of 2)" in capsys.readouterr().err
    monkeypatch.undo()
    sample(snapshot, tmp_path / "one", "--num 21 --grid")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert len(one) == 23
    assert json.loads(one["samples.json"])["truncation"] is None

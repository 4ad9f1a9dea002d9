"""`sagan sample` on files: names, bytes, what is kept, what is refused."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from small_generator import small_generator

from sagan.commands.sample import sample_command
from sagan.errors import UserError
from sagan.images import read_png
from sagan.snapshot import save_snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("snapshot") / "snapshot"
    save_snapshot(small_generator(), folder)
    return str(folder)


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("seed*.png")}


def test_files_are_named_by_seed(snapshot: str, tmp_path: Path):
    """Breaks when a name, a label or an image follows the position in the list instead of the seed."""
    sample_command(snapshot, tmp_path / "some", seeds="12,3,7-8", device="cpu")
    sample_command(snapshot, tmp_path / "all", num=13, device="cpu")
    some, many = pngs(tmp_path / "some"), pngs(tmp_path / "all")
    assert sorted(some) == [f"seed{seed:08d}.png" for seed in (3, 7, 8, 12)]
    assert len(many) == 13
    assert all(many[name] == content for name, content in some.items())
    sample_command(snapshot, tmp_path / "all", seeds="7", classes="bar", device="cpu")
    assert pngs(tmp_path / "all")["seed00000007_class3.png"] == many["seed00000007.png"]  # 7 mod 4 is 3


def test_classes_truncation_and_grid(snapshot: str, tmp_path: Path):
    """Breaks when a class is not drawn for every seed, truncation does nothing, or the sheet has no row a class."""
    sample_command(snapshot, tmp_path / "a", seeds="0-2", classes="star,0", grid=True, device="cpu")
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
    sample_command(snapshot, tmp_path / "b", seeds="0-2", classes="star,0", truncation=0.5, device="cpu")
    assert not set(pngs(tmp_path / "b").values()) & set(drawn.values())


def test_what_is_there_is_kept(snapshot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Breaks when a second call draws again, or does not fill a gap with the same bytes."""
    sample_command(snapshot, tmp_path, num=11, device="cpu")
    first = pngs(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "seed00000009.png").unlink()
    sample_command(snapshot, tmp_path, num=11, device="cpu")
    assert "1 images, 10 were there" in capsys.readouterr().err
    assert pngs(tmp_path) == first
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"seed00000009.png"}


def test_samples_of_something_else_are_refused(snapshot: str, tmp_path: Path):
    """Breaks when one folder mixes images of two snapshots or truncations."""
    sample_command(snapshot, tmp_path / "out", num=2, device="cpu")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    save_snapshot(small_generator("generator.norm_eps=1.0e-3"), tmp_path / "other")
    for source, truncation, said in (
        (snapshot, 0.7, "truncation none, now 0.7"),
        (tmp_path / "other", None, "weights"),
    ):
        with pytest.raises(UserError, match=said):
            sample_command(str(source), tmp_path / "out", num=4, truncation=truncation, device="cpu")
    (tmp_path / "out" / "samples.json").unlink()
    with pytest.raises(UserError, match=r"seed.*\.png"):
        sample_command(snapshot, tmp_path / "out", num=4, device="cpu")
    before.pop("samples.json")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_npz_holds_the_same_images(snapshot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Breaks when the array's images, labels or seeds differ from the files', or a whole one is drawn again."""
    sample_command(snapshot, tmp_path / "a", seeds="5-14", npz=True, grid=True, device="cpu")
    sample_command(snapshot, tmp_path / "b", seeds="5-14", grid=True, device="cpu")
    with np.load(tmp_path / "a" / "samples.npz") as arrays:
        assert arrays["seeds"].tolist() == list(range(5, 15))
        assert arrays["labels"].tolist() == [seed % 4 for seed in range(5, 15)]
        for seed, image in zip(arrays["seeds"], arrays["images"], strict=True):
            assert np.array_equal(image, read_png(tmp_path / "b" / f"seed{seed:08d}.png"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["grid.png", "samples.json", "samples.npz"]
    assert (tmp_path / "a" / "grid.png").read_bytes() == (tmp_path / "b" / "grid.png").read_bytes()
    capsys.readouterr()
    sample_command(snapshot, tmp_path / "a", seeds="5-14", npz=True, device="cpu")
    assert "0 images, 10 were there" in capsys.readouterr().err
    with pytest.raises(UserError, match="other seeds"):
        sample_command(snapshot, tmp_path / "a", seeds="5-15", npz=True, device="cpu")


def test_interpolation_begins_and_ends_at_the_seeds(snapshot: str, tmp_path: Path):
    """Breaks when an end is not the seed's own image, or the class does not change on the way."""
    sample_command(snapshot, tmp_path, interpolate=(1, 6), classes="1,2", frames=9, device="cpu")
    sample_command(snapshot, tmp_path, interpolate=(1, 6), frames=4, animation="mp4", device="cpu")
    sample_command(snapshot, tmp_path, seeds="1,6", classes="1-2", device="cpu")
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


def test_an_unconditional_snapshot(tmp_path: Path):
    """Breaks when labels are made up for a generator without classes."""
    save_snapshot(small_generator(num_classes=0), tmp_path / "snapshot")
    source, out = str(tmp_path / "snapshot"), tmp_path / "out"
    sample_command(source, out, num=2, device="cpu")
    sample_command(source, out, interpolate=(0, 1), frames=2, device="cpu")
    sample_command(source, tmp_path / "npz", num=2, npz=True, device="cpu")
    assert len(pngs(out)) == 2
    with np.load(tmp_path / "npz" / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [-1, -1]
    with pytest.raises(UserError, match="has no classes"):
        sample_command(source, tmp_path / "none", num=2, classes="0", device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num": 2, "seeds": "0-1"},
        {"num": 0},
        {"seeds": "0-"},
        {"num": 2, "classes": "disc,cube"},
        {"num": 2, "classes": "4"},
        {"num": 2, "truncation": -1.0},
        {"num": 5000, "grid": True},
        {"num": 2, "device": "tpu"},
        {"num": 2, "interpolate": (0, 1)},
        {"interpolate": (0, 1), "classes": "0-2"},
        {"interpolate": (0, 1), "frames": 1},
    ],
    ids=str,
)
def test_bad_options_leave_nothing_behind(snapshot: str, tmp_path: Path, options: dict):
    """Breaks when a mistake is found only after files were written, or is not found."""
    with pytest.raises(UserError) as caught:
        sample_command(snapshot, tmp_path / "out", **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder(snapshot: str, tmp_path: Path):
    """Breaks when a file in the folder's place is overwritten or gives a traceback."""
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(UserError, match="folder"):
            sample_command(snapshot, out, num=2, device="cpu")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_whole_files(tmp_path: Path):
    """Breaks when a write that fails leaves part of a file, or takes whole ones along; the next call goes on."""
    save_snapshot(small_generator("data.resolution=64", channels=4), tmp_path / "snapshot")
    source, out = str(tmp_path / "snapshot"), tmp_path / "out"
    sample_command(source, tmp_path / "all", num=30, device="cpu")
    expected = pngs(tmp_path / "all")
    sizes = [len(expected[name]) for name in sorted(expected)]
    largest = sizes.index(max(sizes))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[largest] - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            sample_command(source, out, num=30, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = pngs(out)
    assert len(left) == largest > 2
    assert {path.name for path in out.iterdir()} == {*left, "samples.json"}
    sample_command(source, out, num=30, device="cpu")
    assert pngs(out) == expected


def test_two_processes_draw_the_same_files(snapshot: str, tmp_path: Path):
    """Breaks when images depend on the number of processes, a process draws another's, or nobody writes the sheet."""
    common = [str(ROOT / "sample.py"), snapshot, "--seeds", "0-20", "--grid", "--device", "cpu", "--out"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *common, str(tmp_path / "two")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "11 images (process 1 of 2)" in done.stderr
    torch.set_num_threads(2)
    sample_command(snapshot, tmp_path / "one", num=21, grid=True, device="cpu")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert len(one) == 23
    assert json.loads(one["samples.json"])["truncation"] is None


def test_what_is_imported():
    """Breaks when options are checked after torch is imported, or drawing imports what it does not use."""
    program = (
        "import sys, sagan.commands.sample; assert 'torch' not in sys.modules\n"
        "import sagan.sample_folder\n"
        "print(*({'torchvision', 'torch_fidelity', 'lpips', 'matplotlib', 'imageio', 'accelerate'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"

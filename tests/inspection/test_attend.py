import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import sagan
from PIL import Image
from tiny import write_config

from sagan.commands.attend import attend_command
from sagan.commands.attend_options import Options
from sagan.config import load_config
from sagan.data.dataset import PreparedData
from sagan.data.shapes import CLASSES
from sagan.errors import UserError
from sagan.images import save_png
from sagan.networks import bake, build_generator
from sagan.snapshot import save_snapshot


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("attend") / "snapshot", CLASSES)


def saved(folder: Path, class_names: tuple[str, ...], *settings: str, gamma: float = 0.5) -> Path:
    config = load_config(None, ["generator.channels=8", *settings])
    generator = bake(build_generator(config, len(class_names), class_names))
    for module in generator.attention.values():
        module.gamma.data.fill_(gamma)  # type: ignore[union-attr]
    save_snapshot(generator, folder)
    return folder


def look(source: Path, out: Path, seeds: str, classes: str | None, points: str | None, **more: object) -> None:
    attend_command(Options(str(source), out, seeds, classes, points, **more))  # type: ignore[arg-type]


def test_attend_writes_figure_and_arrays_and_says_whether_attention_is_used(
    snapshot: Path, tmp_path: Path, capsys
) -> None:
    """Breaks when a file is missing or its points, seeds or labels are others than asked for."""
    look(snapshot, tmp_path, "2,5-6", None, "3", as_json=False)
    said = capsys.readouterr().out
    assert said.startswith("attention at 16x16 is used: gamma 0.5, ")
    assert "no query point lies on one of two clear objects" in said  # an untrained generator draws none
    assert str(tmp_path / "attention.png") in said
    with np.load(tmp_path / "attention.npz", allow_pickle=False) as arrays:
        assert arrays["seeds"].tolist() == [2, 5, 6]
        assert arrays["labels"].tolist() == [2, 1, 2]
        assert arrays["maps/attention.16x16"].shape == (3, 1, 3, 8, 8)
    with Image.open(tmp_path / "attention.png") as figure:
        assert figure.width > 4 * 128
        assert figure.height > 3 * 128
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.png", "attention.npz", "attention.png"]


def test_every_seed_is_shown_in_each_class_asked_for(snapshot: Path, tmp_path: Path, capsys) -> None:
    """Breaks when classes follow the place in the list, or names are not understood."""
    look(snapshot, tmp_path, "0-1", "cross,0", "grid", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 4
    assert said["attention"]["attention.16x16"]["gamma"] == 0.5
    with np.load(tmp_path / "attention.npz") as arrays:
        assert arrays["seeds"].tolist() == [0, 0, 1, 1]
        assert arrays["labels"].tolist() == [CLASSES.index("cross"), 0] * 2
        assert arrays["points"].shape == (4, 9, 2)


def test_the_same_command_gives_the_same_bytes(snapshot: Path, tmp_path: Path) -> None:
    """Breaks when points or files depend on anything but the arguments."""
    for out in (tmp_path / "a", tmp_path / "b"):
        look(snapshot, out, "0-2", None, "random", as_json=False)
    for name in ("attention.png", "attention.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_gamma_zero_is_called_unused(tmp_path: Path, capsys) -> None:
    """Breaks when a figure of attention that is not used passes without a word; unconditional generators work too."""
    source = saved(tmp_path / "snapshot", (), gamma=0.0)
    look(source, tmp_path / "out", "0", None, "1", as_json=False)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "attention at 16x16 is unused: gamma is still 0"
    assert "object" not in said  # partners are for shapes


def test_a_network_without_attention_is_refused_with_what_would_show_it(tmp_path: Path) -> None:
    """Breaks when an empty figure is written."""
    source = saved(tmp_path / "snapshot", (), "generator.attention={}")
    with pytest.raises(UserError, match=r"no attention.*generator\.attention\.16=self_attention"):
        look(source, tmp_path / "out", "0", None, "1", as_json=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seeds", "classes", "points", "message"), [
    ("0-", None, "5", "--seeds"),
    ("0-3", "9", "5", "--classes 9"),
    ("0-3", "dics", "5", "did you mean disc"),
    ("0-3", None, "0", "--points 0: expected a number from 1 to 32, random or grid"),
    ("0-3", None, "many", "--points many"),
    ("0-3", None, "²", "--points"),
    ("0-200", None, "5", "201 images asked for; a figure shows at most 128"),
    ("0-63", "0-3", "5", "256 images"),
])  # fmt: skip
def test_bad_input_is_refused_and_nothing_written(
    snapshot: Path, tmp_path: Path, seeds, classes, points, message
) -> None:
    """Breaks when an argument is not checked before the work."""
    with pytest.raises(UserError, match=message):
        look(snapshot, tmp_path / "out", seeds, classes, points, as_json=False)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named(snapshot: Path, tmp_path: Path) -> None:
    """Breaks when the output folder is only tried after the work."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="out: is a file"):
        look(snapshot, tmp_path / "out", "0", None, "1", as_json=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: PreparedData) -> Path:
    """Two real steps with a snapshot of each."""
    folder = tmp_path_factory.mktemp("attended")
    config = write_config(folder / "c.yaml", data, training={"steps": 2, "batch_size": 4, "snapshot_every": 1})
    assert sagan("train", config, "--out", folder / "run") == 0
    return folder / "run"


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.usefixtures("alone")
def test_the_discriminator_is_shown_on_real_and_generated_images(run: Path, data: PreparedData, tmp_path: Path) -> None:
    """Breaks when the discriminator's maps are of other images than the generator's, or real ones get wrong labels."""
    look(run, tmp_path, "0-2", None, "2", network="both")
    own, fakes, reals = (
        arrays_of(tmp_path / f"{name}.npz") for name in ("attention", "discriminator-generated", "discriminator-real")
    )
    assert np.array_equal(own["images"], fakes["images"])
    assert np.array_equal(own["labels"], fakes["labels"])
    assert fakes["layers"].tolist() == ["trunk.attention.8x8"]
    sums = fakes["maps/trunk.attention.8x8"].sum((-2, -1))
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    places = [int(np.flatnonzero((data.images == image).all((1, 2, 3)))[0]) for image in reals["images"]]
    assert data.labels[places].tolist() == reals["labels"].tolist()


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_shows_both_networks_on_images_of_a_folder(run: Path, data: PreparedData, tmp_path: Path) -> None:
    """Breaks when --images are not what the discriminator judges, or their sub-folders are not the classes."""
    for i in range(6):
        save_png(tmp_path / "in" / CLASSES[data.labels[i]] / f"{i}.png", data.images[i])
    checkpoint = run / "checkpoints" / "00000002"
    look(checkpoint, tmp_path / "out", "0-5", None, "1", network="discriminator", images=tmp_path / "in")
    found = arrays_of(tmp_path / "out" / "discriminator-real.npz")
    own = {image.tobytes(): label for image, label in zip(data.images[:6], data.labels[:6], strict=True)}
    assert [own[image.tobytes()] for image in found["images"]] == found["labels"].tolist()
    assert not (tmp_path / "out" / "attention.png").exists()


def test_points_are_those_of_at(snapshot: Path, tmp_path: Path) -> None:
    """Breaks when rows and columns are swapped, or a pixel is not the one that was named."""
    look(snapshot, tmp_path, "0", None, None, at="3,30;31,0")
    assert arrays_of(tmp_path / "attention.npz")["point_pixels"].tolist() == [[[3, 30], [31, 0]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "3;4"}, "--at '3': expected ROW,COLUMN pairs"),
        ({"at": "32,0"}, "point 32,0 lies outside the image of 32 rows and 32 columns"),
        ({"at": "1,1", "points": "3"}, "--points and --at exclude each other"),
        ({"layers": "attention.16x61"}, "no such map; did you mean attention.16x16?"),
        ({"network": "both"}, "a snapshot holds the generator alone; give its run or a checkpoint"),
        ({"images": Path("x")}, "--images: are for the discriminator"),
        ({"animate": "snapshots"}, "--animate snapshots: needs a run"),
        ({"mp4": True}, "--mp4: is for an animation"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    snapshot: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """Breaks when an option is passed over, or refused after files were written."""
    with pytest.raises(UserError, match=re.escape(message)):
        attend_command(Options(str(snapshot), tmp_path / "out", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_ablation_is_nothing_where_attention_is_unused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the ablation compares other images, or the network is left without its attention."""
    changes = {}
    for gamma in (0.0, 2.0):
        source = saved(tmp_path / f"s{gamma}", CLASSES, gamma=gamma)
        look(source, tmp_path / f"o{gamma}", "0-1", None, "1", as_json=True)
        changes[gamma] = json.loads(capsys.readouterr().out)["ablation"]
    assert changes[0.0]["grey_levels"] == 0
    assert changes[0.0]["with"] == changes[0.0]["without"]
    assert changes[2.0]["grey_levels"] > 0


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("what", "frames"), [("snapshots", 2), ("path", 48)])
def test_an_animation_has_a_frame_a_snapshot_or_a_place(run: Path, tmp_path: Path, what: str, frames: int) -> None:
    """Breaks when a frame is missing, or two snapshots give the same picture."""
    look(run, tmp_path, "0", None, "2", animate=what, tile=64)
    with Image.open(tmp_path / f"attention-{what}.gif") as animation:
        assert animation.n_frames == frames


def test_an_animation_can_be_a_film(run: Path, tmp_path: Path) -> None:
    """Breaks when --mp4 writes a GIF under another name, or nothing."""
    look(run, tmp_path, "0", None, "2", animate="snapshots", tile=64, mp4=True)
    assert (tmp_path / "attention-snapshots.mp4").read_bytes()[4:8] == b"ftyp"
    assert not (tmp_path / "attention-snapshots.gif").exists()

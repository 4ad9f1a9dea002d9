import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan.commands.attend import attend_command
from sagan.config import load_config
from sagan.data.shapes import CLASSES
from sagan.errors import UserError
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


def test_attend_writes_figure_and_arrays_and_says_whether_attention_is_used(
    snapshot: Path, tmp_path: Path, capsys
) -> None:
    """Breaks when a file is missing or its points, seeds or labels are others than asked for."""
    attend_command(str(snapshot), tmp_path, "2,5-6", None, "3", as_json=False)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.npz", "attention.png"]


def test_every_seed_is_shown_in_each_class_asked_for(snapshot: Path, tmp_path: Path, capsys) -> None:
    """Breaks when classes follow the place in the list, or names are not understood."""
    attend_command(str(snapshot), tmp_path, "0-1", "cross,0", "grid", as_json=True)
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
        attend_command(str(snapshot), out, "0-2", None, "random", as_json=False)
    for name in ("attention.png", "attention.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_gamma_zero_is_called_unused(tmp_path: Path, capsys) -> None:
    """Breaks when a figure of attention that is not used passes without a word; unconditional generators work too."""
    source = saved(tmp_path / "snapshot", (), gamma=0.0)
    attend_command(str(source), tmp_path / "out", "0", None, "1", as_json=False)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "attention at 16x16 is unused: gamma is still 0"
    assert "object" not in said  # partners are for shapes


def test_a_network_without_attention_is_refused_with_what_would_show_it(tmp_path: Path) -> None:
    """Breaks when an empty figure is written."""
    source = saved(tmp_path / "snapshot", (), "generator.attention={}")
    with pytest.raises(UserError, match=r"no attention.*generator\.attention\.16=self_attention"):
        attend_command(str(source), tmp_path / "out", "0", None, "1", as_json=False)
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
        attend_command(str(snapshot), tmp_path / "out", seeds, classes, points, as_json=False)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named(snapshot: Path, tmp_path: Path) -> None:
    """Breaks when the output folder is only tried after the work."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="out: is a file"):
        attend_command(str(snapshot), tmp_path / "out", "0", None, "1", as_json=False)

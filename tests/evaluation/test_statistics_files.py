"""Files of statistics: exact, of other programs, damaged, and of another kind."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sagan.evaluation.fid import Statistics, frechet_distance, load_statistics, save_statistics
from sagan.utils.errors import UserError


def some(dimension: int) -> Statistics:
    features = np.random.default_rng(0).normal(1, 1, (50, dimension))
    return Statistics(50, features.mean(0), np.cov(features, rowvar=False))


def assert_same(found: Statistics, expected: Statistics) -> None:
    assert found.count == expected.count
    assert np.array_equal(found.mean, expected.mean)
    assert np.array_equal(found.covariance, expected.covariance)


def test_files_keep_every_bit(tmp_path: Path) -> None:
    """Breaks when a number, the count or the note changes on its way, or the same statistics give other bytes."""
    statistics = some(8)
    about = {"name": "Füße", "size": [32, 32], "backbone": None}
    for name in ("a.npz", "b.npz"):
        save_statistics(tmp_path / name, statistics, about)
    found, told = load_statistics(tmp_path / "a.npz")
    assert_same(found, statistics)
    assert told == about
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert json.loads(str(arrays["about"])) == about


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_other_programs_are_read(tmp_path: Path, dtype: type) -> None:
    """Breaks when `mu` and `sigma` of pytorch-fid or TTUR, beside other arrays, are not understood."""
    a = some(8)
    np.savez(tmp_path / "a.npz", mu=a.mean.astype(dtype), sigma=a.covariance.astype(dtype), arr_0=np.zeros(3))
    found, about = load_statistics(tmp_path / "a.npz")
    assert (found.count, about) == (0, {})
    assert frechet_distance(found, a) < 1e-5
    assert found.covariance.dtype == np.float64


@pytest.mark.parametrize("form", ["ours", "compressed, of others"])
def test_a_flipped_byte_is_found(tmp_path: Path, form: str) -> None:
    """Breaks when damage anywhere in the file gives other numbers, or an error that is not one line to the user."""
    path, damaged = tmp_path / "a.npz", tmp_path / "b.npz"
    statistics, about = some(3), {"name": "x"}
    if form == "ours":
        save_statistics(path, statistics, about)
    else:
        statistics, about = Statistics(0, statistics.mean, statistics.covariance), {}
        np.savez_compressed(path, mu=statistics.mean, sigma=statistics.covariance)
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 3):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found, told = load_statistics(damaged)
        except UserError as error:
            messages.append(str(error))
        else:  # a date or a size that nobody reads
            assert_same(found, statistics)
            assert told == about
    assert len(messages) > 0.5 * len(whole) / 3
    assert all(message.startswith(f"{damaged}: ") and "\n" not in message for message in messages)


def test_changed_numbers_are_found(tmp_path: Path) -> None:
    """Breaks when the checksum is not compared: here the archive is sound, and one number is another."""
    save_statistics(tmp_path / "a.npz", some(3), {})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        changed = dict(arrays)
    changed["covariance"][1, 1] += 1e-12
    np.savez(tmp_path / "a.npz", **changed)
    with pytest.raises(UserError, match="damaged, its checksum does not match"):
        load_statistics(tmp_path / "a.npz")


def write_bad_file(path: Path, kind: str) -> None:
    a = some(3)
    arrays = {
        "shapes": {"mu": a.mean, "sigma": a.covariance[:2]},
        "not_square": {"mu": a.mean[:, None], "sigma": a.covariance},
        "integers": {"mu": np.arange(3), "sigma": np.eye(3, dtype=int)},
        "not_finite": {"mu": a.mean, "sigma": a.covariance * np.nan},
        "not_symmetric": {"mu": a.mean, "sigma": np.triu(np.ones((3, 3)))},
        "negative": {"mu": a.mean, "sigma": -a.covariance},
        "objects": {"mu": a.mean.astype(object), "sigma": a.covariance},
        "images": {"images": np.zeros((2, 4, 4, 3), np.uint8)},
        "empty": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
    }
    if kind in arrays:
        np.savez(path, **arrays[kind])
    elif kind == "truncated":
        save_statistics(path, a, {})
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"mu": a.mean}))
    elif kind == "npy":
        with open(path, "wb") as file:
            np.save(file, a.mean)
    elif kind == "text_in_zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("mu.npy", "sigma.npy"):
                archive.writestr(name, "nothing of NumPy's")
    elif kind == "huge":
        header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % 10**15
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("mu.npy", "sigma.npy"):
                archive.writestr(name, header.ljust(127) + b"\n")
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"


@pytest.mark.parametrize(("kind", "message"), [
    ("missing", "no such statistics file"), ("folder", "no such statistics file"), ("truncated", "not readable"),
    ("pickle", "not readable"),
    ("npy", "not readable"), ("text_in_zip", "not readable"), ("huge", "not readable"),
    ("objects", "not readable"),
    ("images", "holds neither"), ("shapes", "expected floats"), ("not_square", "expected floats"),
    ("integers", "expected floats"), ("empty", "expected floats"), ("not_finite", "not finite"),
    ("not_symmetric", "not symmetric"), ("negative", "negative variance"),
])  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    """Breaks when a file of another kind is unpickled, gives a distance, or a traceback."""
    path = tmp_path / "bad.npz"
    write_bad_file(path, kind)
    with pytest.raises(UserError, match=message) as error:
        load_statistics(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)

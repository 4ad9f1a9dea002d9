"""Statistics files: exact, of other programs, damaged, and of another kind."""

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


def test_files_are_exact_and_reproducible(tmp_path: Path) -> None:
    about = {"name": "Füße", "size": [32, 32], "backbone": None}
    for name in ("a.npz", "b.npz"):
        save_statistics(tmp_path / name, some(8), about)
    found, described = load_statistics(tmp_path / "a.npz")
    assert_same(found, some(8))
    assert described == about
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert json.loads(str(arrays["about"])) == about


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_other_programs_are_read(tmp_path: Path, dtype: type) -> None:
    """Of pytorch-fid or TTUR: `mu` and `sigma`, beside other arrays."""
    a = some(8)
    np.savez(tmp_path / "a.npz", mu=a.mean.astype(dtype), sigma=a.covariance.astype(dtype), arr_0=np.zeros(3))
    found, about = load_statistics(tmp_path / "a.npz")
    assert (found.count, about) == (0, {})
    assert frechet_distance(found, a) < 1e-5
    assert found.covariance.dtype == np.float64


@pytest.mark.parametrize("form", ["ours", "compressed, of others"])
def test_flipped_bytes_are_detected(tmp_path: Path, form: str) -> None:
    path, damaged = tmp_path / "a.npz", tmp_path / "b.npz"
    statistics, about = some(3), {"name": "x"}
    if form == "ours":
        save_statistics(path, statistics, about)
    else:
        statistics, about = Statistics(0, statistics.mean, statistics.covariance), {}
        np.savez_compressed(path, mu=statistics.mean, sigma=statistics.covariance)
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 7):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found, described = load_statistics(damaged)
        except UserError as error:
            messages.append(str(error))
        else:  # a date or a size that nobody reads
            assert_same(found, statistics)
            assert described == about
    assert len(messages) > 0.5 * len(whole) / 7
    assert all(message.startswith(f"{damaged}: ") and "\n" not in message for message in messages)


def test_changed_numbers_are_detected(tmp_path: Path) -> None:
    """Here the archive is sound, but the checksum does not match."""
    save_statistics(tmp_path / "a.npz", some(3), {})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        changed = dict(arrays)
    changed["covariance"][1, 1] += 1e-12
    np.savez(tmp_path / "a.npz", **changed)
    with pytest.raises(UserError, match="damaged, its checksum does not match"):
        load_statistics(tmp_path / "a.npz")


A = some(3)
HUGE = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % 10**15
ARRAYS = {
    "shapes": ({"mu": A.mean, "sigma": A.covariance[:2]}, "expected floats"),
    "not square": ({"mu": A.mean[:, None], "sigma": A.covariance}, "expected floats"),
    "integers": ({"mu": np.arange(3), "sigma": np.eye(3, dtype=int)}, "expected floats"),
    "empty": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "expected floats"),
    "not finite": ({"mu": A.mean, "sigma": A.covariance * np.nan}, "not finite"),
    "not symmetric": ({"mu": A.mean, "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
    "negative": ({"mu": A.mean, "sigma": -A.covariance}, "negative variance"),
    "objects": ({"mu": A.mean.astype(object), "sigma": A.covariance}, "not readable"),
    "images": ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "holds neither"),
}
BYTES = {"pickle": pickle.dumps({"mu": A.mean}), "text": b"<html>", "nothing": b""}
MEMBERS = {"text in zip": b"not an array", "huge": HUGE.ljust(127) + b"\n"}


@pytest.mark.parametrize("kind", [*ARRAYS, *BYTES, *MEMBERS, "truncated", "folder", "missing"])
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    path, message = tmp_path / "bad.npz", "not readable"
    if kind in ARRAYS:
        arrays, message = ARRAYS[kind]
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif kind in BYTES:
        path.write_bytes(BYTES[kind])
    elif kind in MEMBERS:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("mu.npy", "sigma.npy"):
                archive.writestr(name, MEMBERS[kind])
    elif kind == "truncated":
        save_statistics(path, A, {})
        path.write_bytes(path.read_bytes()[:-40])
    else:
        message = "no such statistics file"
        if kind == "folder":
            path.mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_statistics(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)

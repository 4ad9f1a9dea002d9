"""Prepared folders, the order of images, and prefetching."""

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sagan.data.dataset import Manifest, Prefetcher, PreparedData, indices, is_prepared
from sagan.data.prepare import prepare
from sagan.utils.errors import UserError


@pytest.fixture
def prepared(folder: Path, tmp_path: Path) -> Path:
    return prepare(str(folder), tmp_path / "prepared", 32, report=lambda line: None).folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        PreparedData.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_gather_gives_copies_in_the_order_asked_for(prepared: Path):
    data = PreparedData.open(prepared)
    wanted = np.array([7, 0, 7, 3])
    images, labels = data.gather(wanted)
    assert (images.shape, images.dtype, labels.dtype) == ((4, 32, 32, 3), np.uint8, np.int64)
    assert type(images) is np.ndarray
    assert images.flags.c_contiguous
    assert images.flags.writeable
    for image, label, index in zip(images, labels, wanted, strict=True):
        assert np.array_equal(image, data.images[index])
        assert label == data.labels[index] == (index >= 4)
    assert isinstance(data.images, np.memmap)
    assert len(data) == 8
    with pytest.raises(IndexError):
        data.gather(np.array([8]))


def test_folders_of_something_else(tmp_path: Path, folder: Path):
    assert not is_prepared(folder)
    (folder / "manifest.json").write_text("{}")
    assert not is_prepared(folder)
    assert "not a folder of prepared data" in refusal(folder)
    assert "not a folder of prepared data" in refusal(tmp_path / "missing")


def test_damage_is_noticed(prepared: Path):
    for name in ("images.npy", "labels.npy"):
        whole = (prepared / name).read_bytes()
        for keep in (len(whole) - 1, 130, 100, 3, 0):
            (prepared / name).write_bytes(whole[:keep])
            assert name in refusal(prepared), keep
        (prepared / name).unlink()
        assert name in refusal(prepared)
        (prepared / name).write_bytes(whole)
    PreparedData.open(prepared)

    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 1, 1, 1, 2]))
    assert "not those of the manifest" in refusal(prepared)
    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 0, 1, 1, 1]))
    assert "not those of the manifest" in refusal(prepared)
    np.save(prepared / "labels.npy", np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32))
    assert "holds int32" in refusal(prepared)


def test_damaged_manifests(prepared: Path):
    path = prepared / "manifest.json"
    good = json.loads(path.read_text())
    for content, message in (
        ("{", "not readable as JSON"),
        ("[]", "not a manifest"),
        (json.dumps(good | {"format": 99}), "format is 99"),
        (json.dumps(good | {"count": -1}), "count"),
        (json.dumps(good | {"count": 9}), "manifest says"),
        (json.dumps(good | {"resolution": 64}), "manifest says"),
        (json.dumps({k: v for k, v in good.items() if k != "source"}), "source"),
    ):
        path.write_text(content)
        assert message in refusal(prepared)


def test_manifest_survives_its_file(prepared: Path):
    manifest = PreparedData.open(prepared).manifest
    assert Manifest.model_validate_json((prepared / "manifest.json").read_text()) == manifest
    assert manifest.class_names == ("cat", "dog")
    assert manifest.class_counts == (4, 4)


def test_every_epoch_holds_each_image_once():
    order = indices(seed=3, size=7, start=0, count=21).reshape(3, 7)
    assert order.dtype == np.int64
    assert [sorted(epoch) for epoch in order.tolist()] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


@pytest.mark.parametrize("cuts", [[5], [7], [3, 14], [1, 2, 20], [6, 8, 13, 15]])
def test_any_cut_gives_the_same_sequence(cuts: list[int]):
    whole = indices(0, 7, 0, 30)
    bounds = [0, *cuts, 30]
    pieces = [indices(0, 7, a, b - a) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_order_is_pinned():
    pinned = [5, 4, 6, 7, 3, 1, 9, 8, 2, 0]
    assert indices(0, 10, 0, 10).tolist() == pinned
    assert indices(1, 10, 0, 10).tolist() != pinned


def test_callers_cannot_change_the_order():
    first = indices(5, 6, 0, 6)
    first[:] = 0
    assert sorted(indices(5, 6, 0, 6).tolist()) == list(range(6))


def test_results_come_in_order():
    assert list(Prefetcher(lambda step: step * step, start=3, stop=9)) == [9, 16, 25, 36, 49, 64]
    assert list(Prefetcher(lambda step: step, start=4, stop=4)) == []


def test_fetches_ahead_but_not_further_than_depth():
    fetched: list[int] = []
    with Prefetcher(lambda step: fetched.append(step) or step, start=0, stop=100, depth=3) as batches:
        _wait_for(lambda: len(fetched) == 3)
        time.sleep(0.02)
        assert len(fetched) == 3
        assert next(batches) == 0
        _wait_for(lambda: len(fetched) == 4)


def test_errors_come_in_their_turn_and_end_the_iteration():

    def fetch(step: int) -> int:
        if step == 2:
            raise OSError("disk gone")
        return step

    batches = Prefetcher(fetch, start=0, stop=5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert list(batches) == []


def test_close_ends_the_thread():
    before = threading.active_count()
    batches = Prefetcher(lambda step: step, start=0, stop=1000)
    assert next(batches) == 0
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(batches) == []


def test_interpreter_leaves_though_nobody_closed():
    code = "from sagan.data.dataset import Prefetcher; b = Prefetcher(lambda s: s, 0, 10**9); print(next(b)); exit(5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (5, "0\n")


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)

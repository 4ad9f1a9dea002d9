"""Snapshot folders: reproducible bytes, one clear line for everything that is not one, nothing executed."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sagan.models.hub import FORMAT, load_exactly, read_snapshot, read_tensors, save_tensors, write_snapshot
from sagan.utils.errors import UserError

CONFIG = {"resolution": 32, "class_names": ["a", "ü"]}


def state() -> dict[str, Tensor]:
    return {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(1.5), "count": torch.tensor([3])}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "00000004"
    folder.mkdir()
    write_snapshot(folder, CONFIG, state())
    return folder


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_snapshot(str(path))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_round_trip(snapshot: Path) -> None:
    config, tensors = read_snapshot(str(snapshot))
    assert config == {"format": FORMAT, **CONFIG}
    assert tensors.keys() == state().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state().items())
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors"]


def test_equal_states_give_equal_bytes(snapshot: Path, tmp_path: Path) -> None:
    """The bytes do not depend on insertion order, memory layout, path or time."""
    transposed = {"b": torch.arange(6.0).view(2, 3).T.contiguous().T.requires_grad_()}
    write_snapshot(tmp_path, dict(reversed(CONFIG.items())), dict(reversed((state() | transposed).items())))
    assert all(path.read_bytes() == (tmp_path / path.name).read_bytes() for path in snapshot.iterdir())


def test_a_snapshot_can_be_read_by_others(snapshot: Path) -> None:
    for path in snapshot.iterdir():
        probe = snapshot.parent / "probe"
        probe.touch()
        assert path.stat().st_mode == probe.stat().st_mode, path.name


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [None, lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:], lambda b: b"[]", lambda b: b"{}",
     lambda b: b'{"format": "diffusers"}', lambda b: b"null"],
    ids=["missing", "empty", "half", "header", "list", "object", "other-format", "null"],
)  # fmt: skip
def test_damaged_files_are_named(snapshot: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    content = (snapshot / name).read_bytes()
    (snapshot / name).unlink()
    if damage:
        (snapshot / name).write_bytes(damage(content))
    message = refusal(snapshot)
    assert name in message
    assert str(snapshot) in message


def test_a_pickle_is_not_opened(snapshot: Path) -> None:
    witness = snapshot / "witness"

    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (witness,))

    torch.save(Payload(), snapshot / "model.safetensors")
    assert "model.safetensors" in refusal(snapshot)
    assert not witness.exists()


def test_paths_that_are_no_snapshot(tmp_path: Path) -> None:
    """The Hub is not asked."""
    (tmp_path / "file").write_text("")
    assert "it has no config.json" in refusal(tmp_path)
    assert "this is a file" in refusal(tmp_path / "file")
    for name in ("runs/shapes/snapshots/00000004", "../nowhere/at/all", "", "a b"):
        assert name in refusal(name)


def test_a_disk_that_is_full_is_an_os_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="large") as caught:
            save_tensors({"a": torch.zeros(10_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "a.safetensors")


def test_tensors_of_every_type_survive(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(2).half(), "bfloat": torch.ones(2).bfloat16(), "whole": torch.tensor([2**62]),
               "none": torch.zeros(0, 3), "yes": torch.tensor([True])}  # fmt: skip
    save_tensors(tensors, tmp_path / "a.safetensors")
    found = read_tensors(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weight": None}, "tensor weight is missing"),
        ({"more": torch.zeros(1)}, "tensor more is not part of this network"),
        ({"weight": torch.zeros(3, 2)}, "weight has shape (3, 2), this network needs (2, 3)"),
        ({"bias": torch.tensor([0.0, torch.nan])}, "bias holds values that are not finite"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_load_exactly(change: dict[str, Tensor | None], problem: str) -> None:
    """A state that does not fit is refused and changes nothing."""
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wrong = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | change
    with pytest.raises(UserError) as caught:
        load_exactly(module, {name: tensor for name, tensor in wrong.items() if tensor is not None}, "here")
    assert str(caught.value).startswith("here: ")
    assert problem in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

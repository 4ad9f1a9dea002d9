"""Checkpoints: bit-for-bit identical, whole or absent, never executed, never the wrong one."""

import copy
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import assert_same_bits, one_process, tiny_batches, tiny_config, tiny_gan

from sagan.models.gan import GAN
from sagan.runs.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    newest_whole_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)
from sagan.training.losses import LOSSES, Objective
from sagan.training.step import discriminator_step, generator_step
from sagan.utils.errors import UserError

TENSORS = [f"{name}.safetensors" for name in
           ("average", "discriminator", "discriminator_optimizer", "generator", "generator_optimizer")]  # fmt: skip


def update(gan: GAN, seed: int) -> None:
    """One update of each network."""
    batches = tiny_batches(tiny_config(), 1, 2, seed=seed, dtype=torch.float32)
    discriminator_step(gan, Objective(LOSSES["hinge"]), batches, one_process())
    generator_step(gan, Objective(LOSSES["hinge"]), [draws for _, draws in batches], one_process())


@pytest.fixture(scope="module")
def trained() -> GAN:
    gan = tiny_gan(tiny_config(), dtype=torch.float32)
    update(gan, 0)
    return gan


@pytest.fixture(scope="module")
def written(trained: GAN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 3 and 5."""
    run = tmp_path_factory.mktemp("run")
    for step in (3, 5):
        save_checkpoint(run / "checkpoints" / f"{step:08d}", trained, Progress(step, 0.5, 3, {"scale": 1024.0}))
    return run


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def test_round_trip_to_the_bit(trained: GAN, saved: Path) -> None:
    trained = copy.deepcopy(trained)
    other = tiny_gan(tiny_config("seed=1", "optim.generator.lr=0.5"), dtype=torch.float32)
    progress = load_checkpoint(saved / "checkpoints" / "00000005", other)
    assert progress == Progress(5, 0.5, 3, {"scale": 1024.0})
    assert_same_bits(trained, other)
    for gan in (trained, other):
        update(gan, 1)
    assert_same_bits(trained, other)


def test_equal_runs_write_equal_bytes(trained: GAN, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, copy.deepcopy(trained), Progress(1))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file


def test_nothing_is_pickled(written: Path) -> None:
    files = sorted((written / "checkpoints" / "00000005").iterdir())
    assert [path.name for path in files if path.suffix == ".safetensors"] == TENSORS
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert isinstance(json.loads(content), dict)


@pytest.mark.parametrize("place", [0, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_one_flipped_bit_is_noticed(written: Path, tmp_path: Path, place: float) -> None:
    for file in sorted((written / "checkpoints" / "00000005").iterdir()):
        run = tmp_path / file.name
        shutil.copytree(written, run)
        content = bytearray(file.read_bytes())
        content[int(len(content) * place)] ^= 1
        (run / "checkpoints" / "00000005" / file.name).write_bytes(content)
        folder, problems = newest_whole_checkpoint(run)
        assert folder == run / "checkpoints" / "00000003", file.name
        assert len(problems) == 1
        assert "00000005" in problems[0]


@pytest.mark.parametrize("file", [*TENSORS, "state.json"])
@pytest.mark.parametrize("cut", ["truncated", "empty", "missing"])
def test_a_cut_or_missing_file_is_noticed(saved: Path, file: str, cut: str) -> None:
    path = saved / "checkpoints" / "00000005" / file
    content = path.read_bytes()
    path.unlink()
    if cut != "missing":
        path.write_bytes(content[: len(content) // 2] if cut == "truncated" else b"")
    folder, problems = newest_whole_checkpoint(saved)
    assert folder == saved / "checkpoints" / "00000003"
    assert file in problems[0]
    with pytest.raises(UserError, match=file):
        load_checkpoint(saved / "checkpoints" / "00000005", tiny_gan(tiny_config(), dtype=torch.float32))


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"sha256": {}}', '{"sha256": []}', '{"sha256": {"a": 1}}'])
def test_a_state_that_is_something_else(saved: Path, content: str) -> None:
    (saved / "checkpoints" / "00000005" / "state.json").write_text(content)
    assert newest_whole_checkpoint(saved)[0] == saved / "checkpoints" / "00000003"


def test_all_damaged(saved: Path) -> None:
    for folder in list_checkpoints(saved):
        (folder / "generator.safetensors").unlink()
    folder, problems = newest_whole_checkpoint(saved)
    assert folder is None
    assert [p.partition("checkpoints/")[2][:8] for p in problems] == ["00000005", "00000003"]
    assert newest_whole_checkpoint(saved / "none") == (None, [])


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("generator.channels=4", "has shape"),
        ("discriminator.channels=4", "has shape"),
        ("generator.attention={}", "tensor attention.8x8.gamma is not part of this network"),
        ("discriminator.attention={16: self_attention}", "tensor trunk.attention.16x16.gamma is missing"),
        ("generator.spectral_norm=false", "is missing"),
    ],
)
def test_another_architecture_is_refused(written: Path, trained: GAN, override: str, problem: str) -> None:
    gan = tiny_gan(tiny_config(override), dtype=torch.float32)
    with pytest.raises(UserError, match=problem) as caught:
        load_checkpoint(written / "checkpoints" / "00000005", gan)
    message = str(caught.value)
    network = override.partition(".")[0]
    names = getattr(gan, network).state_dict().keys() | getattr(trained, network).state_dict().keys()
    assert f"00000005/{network}" in message
    assert any(name in message for name in names)
    assert len(message.splitlines()) == 1


def steps_in(run: Path) -> list[int]:
    return [int(folder.name) for folder in list_checkpoints(run)]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 100, 9000):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".partial-1234-00000050").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    prune_checkpoints(tmp_path, 2, Progress(9000, 0.5, 20))
    assert steps_in(tmp_path) == [20, 100, 9000]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdigit()} == {"notes"}
    prune_checkpoints(tmp_path, 1, Progress(9000))
    assert steps_in(tmp_path) == [9000]
    prune_checkpoints(tmp_path, 5, Progress(9001, 0.5, 9000))
    assert steps_in(tmp_path) == [9000]


def test_a_file_that_cannot_grow_leaves_the_checkpoint_before(saved: Path, trained: GAN) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"large") as caught:
            save_checkpoint(saved / "checkpoints" / "00000007", trained, Progress(7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert steps_in(saved) == [3, 5]
    assert len(list((saved / "checkpoints").iterdir())) == 2
    assert verify_checkpoint(saved / "checkpoints" / "00000005")["step"] == 5

"""Snapshots: written, read back bit-for-bit, and refused if something is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_generator import NAMES, small_generator

import sagan
from sagan.config.load import load_config
from sagan.models.generator import Generator, build_generator
from sagan.runs.snapshot import fingerprint, load_snapshot, newest_snapshot, save_snapshot
from sagan.sampling.sampler import latents
from sagan.utils.errors import UserError


@pytest.fixture
def generator() -> Generator:
    return small_generator()


@pytest.fixture
def folder(tmp_path: Path, generator: Generator) -> Path:
    save_snapshot(generator, tmp_path / "snapshot")
    return tmp_path / "snapshot"


def assert_same(found: Generator, expected: Generator) -> None:
    z, labels = latents([0, 1], expected.z_dim), torch.tensor([1, 3])
    found.memory_format = expected.memory_format
    assert torch.equal(found(z, labels), expected(z, labels))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_snapshot_restores_the_generator_exactly(folder: Path, generator: Generator, tmp_path: Path):
    found = sagan.load_snapshot(folder)
    assert_same(found, generator)
    assert found.class_names == NAMES
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    save_snapshot(found, tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_hub_conventions(folder: Path, generator: Generator, tmp_path: Path):
    load_snapshot(folder).save_pretrained(tmp_path / "pretrained")
    assert_same(Generator.from_pretrained(tmp_path / "pretrained"), generator)
    assert (tmp_path / "pretrained" / "README.md").read_text().startswith("---\n")
    repository = tmp_path / "cache" / "models--someone--sagan"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    folder.rename(repository / "snapshots" / ("0" * 40))
    cached = Generator.from_pretrained("someone/sagan", cache_dir=tmp_path / "cache", local_files_only=True)
    assert_same(cached, generator)
    with pytest.raises(UserError, match="someone/other"):
        Generator.from_pretrained("someone/other", cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_run_means_its_newest_snapshot(tmp_path: Path, generator: Generator):
    with pytest.raises(UserError, match="no snapshot yet"):
        newest_snapshot(tmp_path)
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(UserError, match="no snapshot yet"):
        load_snapshot(tmp_path)
    for step in (5000, 100, 900):
        save_snapshot(generator, tmp_path / "snapshots" / f"{step:08d}")
    for other in (".partial-1234-00009000", "99999999-old"):
        (tmp_path / "snapshots" / other).mkdir()
    assert newest_snapshot(tmp_path) == tmp_path / "snapshots" / "00005000"
    assert_same(load_snapshot(tmp_path), generator)


def test_spectral_norm_must_be_baked(tmp_path: Path):
    raw = build_generator(load_config(None, ["generator.channels=4"]), 4)
    with pytest.raises(AssertionError, match="remove_spectral_norm"):
        save_snapshot(raw, tmp_path / "snapshot")
    assert not list(tmp_path.iterdir())


def test_fingerprint_tells_generators_apart(folder: Path, generator: Generator):
    assert fingerprint(load_snapshot(folder)) == fingerprint(generator)
    prints = {fingerprint(generator), fingerprint(small_generator("generator.norm_eps=1.0e-3"))}
    with torch.no_grad():
        generator.blocks[1].conv2.bias[3] += 1e-6
    assert len({*prints, fingerprint(generator)}) == 3


def edit(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def replace(name: str, tensor: torch.Tensor | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(name, None)
        save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")

    return change


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut("model.safetensors", -100), "model.safetensors"),
        (cut("model.safetensors", 0), "model.safetensors"),
        (cut("config.json", 20), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("[]"), "format"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["BertModel"]}'), "format"),
        (edit(generator={"chanels": 8}), "does not describe a generator"),
        (edit(resolution=48), "does not describe a generator"),
        (edit(num_classes=-1), "does not describe a generator"),
        (edit(num_classes=7, class_names=[]), "has shape .* needs"),
        (edit(class_names=["a"]), "class_names"),
        (replace("conv.weight", torch.zeros(3, 31, 3, 3)), r"conv\.weight has shape \(3, 31, 3, 3\)"),
        (replace("conv.weight", None), r"conv\.weight is missing"),
        (replace("more", torch.zeros(1)), "more"),
        (replace("conv.bias", torch.zeros(3, dtype=torch.int64)), r"conv\.bias .*int64"),
        (replace("conv.bias", torch.full((3,), torch.nan)), r"conv\.bias .* not finite"),
    ],
)
def test_a_bad_snapshot_is_refused(folder: Path, damage: Callable[[Path], object], words: str):
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_snapshot(folder)
    assert "\n" not in str(caught.value)


def test_a_typo_in_a_path_does_not_ask_the_hub(tmp_path: Path):
    with pytest.raises(UserError, match="no such snapshot or run"):
        load_snapshot(tmp_path / "snapsot")

"""`sagan train --dry-run`: the whole summary, and no file."""

from pathlib import Path

import pytest
import yaml
from command_line import sagan
from tiny import tiny_data, write_config

from sagan.config.load import load_config
from sagan.models.generator import build_discriminator, build_generator


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    data = tiny_data(folder / "data")
    return write_config(folder / "c.yaml", data, training={"steps": 2, "batch_size": 4})


def test_dry_run_says_everything_and_does_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "optim.d_steps=3", "--set", "generator.attention={16: {name: self_attention, pool: false}}"]
    assert sagan("train", config, "--out", tmp_path / "out", *options, "--dry-run") == 0
    out, err = capsys.readouterr()
    shown = yaml.safe_load(out[: out.index("Generator: ") - 1].rstrip())
    assert shown["data"]["num_classes"] == 4  # of the data: resolved
    assert shown["generator"]["attention"]["16"]["pool"] is False
    assert shown["optim"]["d_steps"] == 3
    assert "attention in the generator: self_attention at 16x16 (after)" in out
    assert "attention in the discriminator: self_attention at 8x8 (after)" in out
    assert "3 discriminator and 1 generator update of 4 images" in " ".join(out.split())
    assert "2 steps see 24 real images" in " ".join(out.split())
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_every_parameter(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sagan("train", config, "--dry-run") == 0
    out = capsys.readouterr().out
    networks = {"Generator": build_generator, "Discriminator": build_discriminator}
    for title, build in networks.items():
        table = out[out.index(f"{title}: ") :]
        rows = [line.split("│")[1:-1] for line in table[: table.index("└")].splitlines() if line.startswith("│")]
        total = sum(p.numel() for p in build(load_config(config), 4).parameters())
        assert table.startswith(f"{title}: {total:,} parameters")
        assert sum(int(row[-1].replace(",", "")) for row in rows) == total
        shapes = {row[0].strip(): row[2].strip() for row in rows}
        if title == "Generator":
            assert (shapes["blocks.0.conv1"], shapes["attention.8x8"]) == ("8 × 8 × 8", "8 × 8 × 8")
            assert (shapes["linear"], shapes["conv"]) == ("128", "3 × 32 × 32")
        else:
            assert (shapes["trunk.blocks.0.conv2"], shapes["head.linear"]) == ("8 × 16 × 16", "1")


def test_dry_run_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert sagan("train", tmp_path / "c.yaml", "--dry-run") == 0
    assert "assuming 10 classes" in capsys.readouterr().err
    assert sagan("train", tmp_path / "c.yaml", "--dry-run", "--set", "data.num_classes=0") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "5 discriminator and 1 generator update of 64 images" in out  # without classes 1:1 collapses

"""`sagan bench attention`: mechanisms beside a convolution, in one run."""

import json

import pytest
import torch
from command_line import sagan

from sagan.attention import ATTENTION
from sagan.commands.attention_variants import explicit, peak_mib, step_of, too_large, variants

SMALL = ["--channels", 16, "--resolution", 8, "--batch-size", 2, "--rounds", 1]


def test_every_mechanism_is_set_against_the_convolution(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a mechanism is left out, or a ratio is upside down or to another one."""
    assert sagan("bench", "attention", *SMALL, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name in ATTENTION:
        macs = found[f"mega_macs_{name}"] / found["mega_macs_conv3x3"]
        assert found[f"ratio_macs_{name}"] == pytest.approx(macs)
        time = found[f"milliseconds_{name}"] / found["milliseconds_conv3x3"]
        assert found[f"ratio_time_{name}"] == pytest.approx(time)
    assert found["mega_macs_conv3x3"] == pytest.approx(9 * 16 * 16 * 64 / 1e6)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when people get JSON, or a mechanism that was not asked for."""
    assert sagan("bench", "attention", *SMALL, "--names", "cbam") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["conv3x3", "cbam"]


def test_peak_memory_counts_what_is_held_at_once() -> None:
    """Breaks when freed tensors still count, views count twice, or the backward pass is not seen."""
    x = torch.randn(256, 1024, requires_grad=True)  # 1 MiB

    class Steps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = (x + 1).view(1024, 256).view(256, 1024)  # nothing is kept for the gradient
            return x

    assert peak_mib(step_of(Steps(), x)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["non_local", "augmented_conv", "transformer", "gated_positional"])
def test_memory_grows_with_the_cells_not_their_square(name: str) -> None:
    """Breaks when a mechanism that has a fused form holds N×N weights after all."""
    peaks = []
    for resolution in (16, 32):
        (variant,) = list(variants([name], 16, resolution, torch.device("cpu")).values())[1:]
        peaks.append(peak_mib(step_of(variant.module, torch.randn(1, 16, resolution, resolution, requires_grad=True))))
    assert peaks[1] < 9 * peaks[0]  # 16 if it were the square


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when an unknown name or impossible channels end in a traceback."""
    assert sagan("bench", "attention", "--names", "cbma") == 2
    assert "--names: unknown mechanism 'cbma'; known: self_attention" in capsys.readouterr().err
    assert sagan("bench", "attention", "--channels", 3, "--names", "self_attention") == 2
    assert "--channels 3, --resolution 32: self_attention: 3 channels are too few" in capsys.readouterr().err


def test_explicit_weights_are_the_same_attention_and_more_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the explicit form computes something else, holds no (N, M) weights, or its ratio is upside down."""
    cpu = torch.device("cpu")
    fused, formed = variants(["self_attention"], 16, 16, cpu)["self_attention"].module, explicit(16, 16, cpu).module
    formed.attention.load_state_dict(fused.state_dict())
    x = torch.randn(2, 16, 16, 16, requires_grad=True)
    torch.testing.assert_close(formed(x), fused(x))
    gradients = [torch.autograd.grad(module(x).square().sum(), x)[0] for module in (fused, formed)]
    torch.testing.assert_close(*gradients)
    assert peak_mib(step_of(formed, x)) > 2 * (2 * 256 * 64 * 4) / 2**20
    options = [*SMALL, "--names", "self_attention,cbam", "--explicit", "--json"]
    assert sagan("bench", "attention", *options) == 0
    found = json.loads(capsys.readouterr().out)
    times = found["milliseconds_self_attention_explicit"] / found["milliseconds_self_attention"]
    assert found["ratio_explicit"] == pytest.approx(times)


def test_explicit_weights_that_do_not_fit_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when they are tried all the same, or nobody says how large they are."""
    why = too_large(8, 256, 10**6, torch.device("cpu"))
    assert why is not None
    assert why.startswith(f"its weights need {4 * 4 * 10**6 * 256**2 * 128**2} bytes, ")
    assert too_large(8, 8, 1, torch.device("cpu")) is None
    assert sagan("bench", "attention", *SMALL, "--names", "cbam", "--explicit") == 2
    assert "--explicit is set beside self_attention" in capsys.readouterr().err

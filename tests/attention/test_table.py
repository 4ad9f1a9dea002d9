"""The table of mechanisms is complete, and a wrong option is refused with a message that names it."""

from pathlib import Path

import pytest
import torch
from forms import CHANNELS

from sagan.attention import ATTENTION, attention_options, make_attention


@pytest.mark.parametrize("name", list(ATTENTION))
def test_has_its_file_its_test_and_its_row(name: str):
    """Every mechanism has a file, a test and a row in docs/attention.md."""
    root = Path(__file__).parents[2]
    assert ATTENTION[name].__module__ == f"sagan.attention.{name}"
    assert (root / f"tests/attention/test_{name}.py").is_file()
    assert f"\n| `{name}` |" in (root / "docs/attention.md").read_text()


def test_every_file_is_in_the_table():
    """Every file is in the table."""
    files = {path.stem for path in Path(make_attention.__code__.co_filename).parent.glob("*.py")}
    assert files - {"__init__", "base", "functional"} == set(ATTENTION)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_mistakes_name_what_is_known(name: str):
    """An unknown option, place or gain is refused with the known ones."""
    with pytest.raises(ValueError, match=rf"{name} has no option 'colour'; known: "):
        make_attention(name, CHANNELS, 12, colour=1)
    with pytest.raises(ValueError, match=rf"{name} has no place 'before'; known: after"):
        make_attention(name, CHANNELS, 12, "before")
    if "gain" in attention_options(name):
        with pytest.raises(ValueError, match="gain is 'vector'; known: scalar, none"):
            make_attention(name, CHANNELS, 12, gain="vector")
    if "conv" in ATTENTION[name].places:
        assert make_attention(name, CHANNELS, 12, "conv").gains() == {}
        with pytest.raises(ValueError, match="has no gain"):
            make_attention(name, CHANNELS, 12, "conv", gain="scalar")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("self_atention", {}, r"self_atention.*known:.*self_attention"),
        ("self_attention", {"query_ratio": 0.01}, "64 channels are too few"),
        ("self_attention", {"query_ratio": "wide"}, "query_ratio is 'wide', expected something like 0.125"),
        ("non_local", {"form": "cosine"}, "form is 'cosine'; known: embedded_gaussian, gaussian, dot_product, conc"),
        ("non_local", {"pool": "max"}, "pool is 'max'; known: none, before, after"),
        ("non_local", {"norm": "layer"}, "norm is 'layer'; known: none, batch, group"),
        ("non_local", {"ratio": 0.0}, "ratio is 0.0, must be a positive part"),
        ("non_local", {"form": "dot_product", "scale": True}, "for the Gaussian forms, form is 'dot_product'"),
        *(
            ("double_attention", {ratio: value}, f"double_attention: {ratio} is {value}, must be a positive part")
            for ratio in ("value_ratio", "key_ratio")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ("em_attention", {"bases": 0}, "bases is 0, must be at least 1"),
        ("em_attention", {"iterations": 0}, "iterations is 0, must be at least 1"),
        ("em_attention", {"lam": 0.0}, "lam is 0.0, must be above 0 and finite"),
        ("em_attention", {"momentum": 1.5}, r"momentum is 1.5, must lie in \[0, 1\]"),
        ("em_attention", {"gradient": "none"}, "gradient is 'none'; known: full, detached"),
        ("em_attention", {"ratio": 0.01}, "64 channels times ratio 0.01 must be at least 1"),
        ("dual_attention", {"form": "spatial"}, "form is 'spatial'; known: both, position, channel"),
        ("dual_attention", {"sign": 0}, "sign is 0, must be 1 or -1"),
        ("dual_attention", {"ratio": 0.0}, "ratio is 0.0, must be above 0 and finite"),
        ("augmented_conv", {"heads": 3}, "3 heads must divide its 32 key and 16 value channels"),
        ("augmented_conv", {"heads": -1}, "-1 heads"),
        ("augmented_conv", {"value_ratio": 1.25}, "80 value channels of 64"),
        ("gated_positional", {"heads": 5}, "5 heads must divide 64 channels"),
        ("gated_positional", {"heads": 0}, "0 heads"),
        ("gated_positional", {"locality": 0}, "locality is 0"),
        ("transformer", {"heads": 5}, "5 heads must divide 64 channels"),
        ("transformer", {"heads": -1}, "-1 heads"),
        ("transformer", {"ratio": 0}, "ratio is 0"),
        ("transformer", {"position": "rotary"}, "position is 'rotary'; known: learned, sincos, none"),
        ("transformer", {"gelu": "fast"}, "gelu is 'fast'; known: tanh, exact"),
        ("squeeze_excitation", {"reduction": 0}, "reduction is 0, it must be at least 1"),
        ("selective_kernel", {"paths": 1}, "paths is 1, .* at least"),
        ("selective_kernel", {"groups": 0}, "groups is 0, .* at least"),
        ("selective_kernel", {"reduction": 0}, "reduction is 0, .* at least"),
        ("cbam", {"kernel": 4}, "kernel is 4, it must be odd"),
        ("cbam", {"reduction": 0}, "reduction is 0, it must be at least 1"),
        ("spatial_transformer", {"transform": "rigid"}, "transform is 'rigid'; known: affine, similarity, zoom"),
        ("spatial_transformer", {"padding": "wrap"}, "padding is 'wrap'; known: reflection, border, zeros"),
        ("spatial_transformer", {"width": 0}, "width is 0, it must be at least 1"),
        ("residual_block", {"equal": "time"}, "equal is 'time'; known: macs, parameters"),
        ("residual_block", {"kernel": 2}, "kernel is 2, it must be odd"),
    ],
)
def test_wrong_values_are_refused(name: str, options: dict, message: str):
    """A value out of range or an unknown word is refused with the rule that it breaks."""
    with pytest.raises(ValueError, match=message):
        make_attention(name, CHANNELS, 12, **options)


def test_maps_of_the_wrong_size_are_refused():
    """Maps too small to pool, another size than that of relative tables, and channels that do not fit are refused."""
    for name, size, options in (
        ("self_attention", 1, {}),
        ("augmented_conv", 1, {"pool": True}),
        ("non_local", (1, 8), {"pool": "before"}),
    ):
        with pytest.raises(ValueError, match="too small"):
            make_attention(name, CHANNELS, size, **options)
    with pytest.raises(ValueError, match=r"a map of \(1, 8\) is too small"):
        make_attention("non_local", 16, 8, pool="after")(torch.randn(1, 16, 1, 8))
    with pytest.raises(ValueError, match=r"built for maps of \(12, 12\), not \(12, 11\)"):
        make_attention("augmented_conv", 64, 12)(torch.randn(1, 64, 12, 11))
    with pytest.raises(ValueError, match="divisible by 4, not 18"):
        make_attention("transformer", 18, 12, position="sincos")

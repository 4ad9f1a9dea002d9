"""The table of mechanisms is complete, and a wrong option is refused with a message that names it."""

from math import inf, nan
from pathlib import Path

import pytest
import torch
from forms import CHANNELS

from sagan.attention import ATTENTION, attention_options, make_attention


@pytest.mark.parametrize("name", list(ATTENTION))
def test_has_its_file_its_test_and_its_row_in_the_docs(name: str):
    root = Path(__file__).parents[2]
    assert ATTENTION[name].__module__ == f"sagan.attention.{name}"
    assert (root / f"tests/attention/test_{name}.py").is_file()
    assert f"\n| `{name}` |" in (root / "docs/attention.md").read_text()


def test_every_file_is_in_the_table():
    files = {path.stem for path in Path(make_attention.__code__.co_filename).parent.glob("*.py")}
    assert files - {"__init__", "base", "functional"} == set(ATTENTION)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_mistakes_name_what_is_known(name: str):
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


HEADS = {  # 20 key channels in each head, and heads 64 wide, or more
    "augmented_conv": {16: 1, 64: 1, 128: 2, 256: 4, 512: 8, 1024: 8},
    "transformer": {16: 1, 64: 1, 96: 1, 128: 2, 200: 2, 512: 8},
}


@pytest.mark.parametrize("name", HEADS)
def test_default_heads(name: str):
    assert {channels: make_attention(name, channels, 4).heads for channels in HEADS[name]} == HEADS[name]


WRONG = {
    "self_attention": [{"query_ratio": 0.01}, {"query_ratio": "wide"}],
    "non_local": [{"form": "cosine"}, {"pool": "max"}, {"norm": "layer"}, {"ratio": 0.0},
                  {"scale": True, "form": "dot_product"}],
    "double_attention": [{ratio: value} for ratio in ("value_ratio", "key_ratio") for value in (0.0, -1.0, nan, inf)],
    "em_attention": [{"bases": 0}, {"iterations": 0}, {"lam": 0.0}, {"momentum": 1.5}, {"gradient": "none"},
                     {"ratio": 0.01}],
    "dual_attention": [{"form": "spatial"}, {"sign": 0}, {"ratio": 0.0}],
    "augmented_conv": [{"heads": 3}, {"heads": -1}, {"value_ratio": 1.25}],
    "gated_positional": [{"heads": 5}, {"heads": 0}, {"locality": 0}],
    "transformer": [{"heads": 5}, {"heads": -1}, {"ratio": 0}, {"position": "rotary"}, {"gelu": "fast"}],
    "squeeze_excitation": [{"reduction": 0}],
    "selective_kernel": [{"paths": 1}, {"groups": 0}, {"reduction": 0}],
    "cbam": [{"kernel": 4}, {"reduction": 0}],
    "spatial_transformer": [{"transform": "rigid"}, {"padding": "wrap"}, {"width": 0}],
    "residual_block": [{"equal": "time"}, {"kernel": 2}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, each in WRONG.items() for options in each])
def test_wrong_values_are_refused(name: str, options: dict):
    """The message names the option or its subject."""
    subject = "channels" if options == {"query_ratio": 0.01} else next(iter(options)).replace("value_ratio", "value")
    with pytest.raises(ValueError, match=subject if name != "double_attention" else next(iter(options))):
        make_attention(name, CHANNELS, 12, **options)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"self_atention.*known:.*self_attention"):
        make_attention("self_atention", CHANNELS, 12)


def test_maps_of_the_wrong_size_are_refused():
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

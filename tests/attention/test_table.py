"""The table of mechanisms: nothing missing, nothing unnamed, mistakes answered."""

from pathlib import Path

import pytest
from forms import CHANNELS

from sagan.attention import ATTENTION, attention_options, make_attention


@pytest.mark.parametrize("name", list(ATTENTION))
def test_has_its_file_its_test_and_its_row(name: str):
    """Breaks when a mechanism lacks its own file, its own test, or its row in docs/attention.md."""
    root = Path(__file__).parents[2]
    assert ATTENTION[name].__module__ == f"sagan.attention.{name}"
    assert (root / f"tests/attention/test_{name}.py").is_file()
    assert f"\n| `{name}` |" in (root / "docs/attention.md").read_text()


def test_every_file_is_in_the_table():
    """Breaks when a mechanism's file is not in the table."""
    files = {path.stem for path in Path(make_attention.__code__.co_filename).parent.glob("*.py")}
    assert files - {"__init__", "base", "functional"} == set(ATTENTION)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_mistakes_name_what_is_known(name: str):
    """Breaks when an option of another mechanism, a place or a gain it does not have gives no clear line."""
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

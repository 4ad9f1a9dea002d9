"""Random options and configs give a value or one line, in seconds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import HOSTILE, LENGTHS, fuzzing, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st

from sagan.config.load import load_config, make_config
from sagan.config.options import check_interpolation, check_truncation, parse_classes, parse_seeds
from sagan.config.schema import Config
from sagan.data.sources import open_source
from sagan.evaluation.registry import parse_metrics
from sagan.inspection.command import parse_pixels, parse_points
from sagan.utils.errors import UserError

SYMBOLS = st.text("0123456789-,:;.{}[]()&*!|>%@'\"\\#~= \n\t\x1b\ud800\u0663ae_", max_size=14)
NUMBERS = st.integers(-(10**25), 10**25).map(str) | st.integers(0, 40).map(str) | st.floats().map(str)
PARTS = st.sampled_from(["cat", "dog", "0-3", "7-", "-1", "1-1", "8,8", "0,0;", "random", "grid", "fid", "kid",
                         "shapes:", "torchvision:", "cifar10", "disc", "%", "", " "])  # fmt: skip
TEXTS = (
    st.text(max_size=10) | SYMBOLS | NUMBERS
    | st.builds(lambda mark, parts: mark.join(parts), st.sampled_from(",;:- "),
                st.lists(PARTS | NUMBERS | SYMBOLS, max_size=5))
)  # fmt: skip


def usable(config: Config) -> None:
    """A valid config must survive being written as config.yaml and read again."""
    try:
        again = make_config(yaml.safe_load(config.to_yaml()))
    except UserError as error:
        raise AssertionError(error) from error
    assert again == config


READERS: dict[str, Any] = {  # what the text is given to
    "--seeds": parse_seeds,
    "--classes": lambda text: parse_classes(text, ["cat", "dog", "3", "a-b", "ä"], 5),
    "--points": parse_points,
    "--at": parse_pixels,
    "--metrics": parse_metrics,
    "--set": lambda text: usable(make_config({}, [text])),
    "--set of a setting": lambda text: usable(make_config({}, [f"training.steps={text}"])),
    "--set of a seed": lambda text: usable(make_config({}, [f"seed={text}"])),
    "--set of attention": lambda text: usable(make_config({}, [f"generator.attention.16={text}"])),
    "source": lambda text: open_source(f"shapes:{text}", 32),
    "source of torchvision": lambda text: open_source(f"torchvision:{text}", 32),
}
GROUPS = make_config({}).to_dict()
KEYS = sorted({*GROUPS, *(name for group in GROUPS.values() if isinstance(group, dict) for name in group)})
LEAVES = st.sampled_from(HOSTILE) | SYMBOLS | st.integers() | st.floats() | st.binary(max_size=4) | st.dates()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.sampled_from([8, 16, 1.5, None]) | SYMBOLS, inner, max_size=4)
    ),
    max_leaves=14,
)
LINES = st.builds("{}{}: {}".format, st.sampled_from(["", "  ", "- ", "? ", "&a ", "!!python/object:os.x "]),
                  st.sampled_from(KEYS) | SYMBOLS, SYMBOLS | NUMBERS | st.sampled_from(
                      ["*a", "&a [*a]", "{<<: *a}", "|", ">", "!!set {a}", "!!omap [a: 1]", "!!float x", "!!binary x",
                       "!!timestamp 2001-99-99", "!!int ''", "1:60:60", "0x", "0b", "0o9", ".inf", "[[[[",
                       "---"]))  # fmt: skip


@LENGTHS
@pytest.mark.parametrize("name", READERS)
def test_any_text_is_taken_or_refused(name: str, examples: int) -> None:
    @fuzzing(examples)
    @given(TEXTS)
    def run(text: str) -> None:
        taken_or_refused(lambda: READERS[name](text))

    run()


@LENGTHS
def test_any_config_is_taken_or_refused(tmp_path: Path, examples: int) -> None:
    """Files of some text, and files that are certainly YAML."""
    path = tmp_path / "a.yaml"

    @fuzzing(examples)
    @given(
        st.lists(LINES, max_size=6).map("\n".join) | TREES.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
    )
    def run(text: str) -> None:
        path.write_bytes(text.encode(errors="surrogatepass"))
        taken_or_refused(lambda: usable(load_config(path)))

    run()


@LENGTHS
def test_any_numbers_are_taken_or_refused(examples: int) -> None:
    @fuzzing(examples)
    @given(st.floats() | st.none(), st.tuples(st.integers(), st.integers()), st.integers())
    def run(truncation: float | None, ends: tuple[int, int], frames: int) -> None:
        taken_or_refused(lambda: check_truncation(truncation))
        taken_or_refused(lambda: check_interpolation(ends, frames, []))

    run()

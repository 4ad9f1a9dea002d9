"""Settings that nobody meant: each is refused, or is a config that can be written and read again."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config

from sagan.config import differences, load_config, make_config
from sagan.errors import UserError
from sagan.selections import HIGHEST_SEED, parse_classes, parse_seeds

FUZZ = settings(max_examples=200, derandomize=True, database=None, deadline=None)


def names(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Every dotted name of a nested config, groups included."""
    inner = [name for key, value in tree.items() if isinstance(value, dict) for name in names(value, f"{prefix}{key}.")]
    return [*(f"{prefix}{key}" for key in tree), *inner]


NAMES = names(tiny_config().to_dict())
KEYS = sorted({part for name in NAMES for part in name.split(".")})
TEXTS = st.text(max_size=8) | st.text("0123456789-,:.{}[]&*!|>%@'\"\\#~ \n\tae_", max_size=12)
VALUES = st.sampled_from(
    ["0", "-1", "1e400", ".inf", ".nan", "~", "yes", "[]", "{}", "[[1]]", "{a: 1}", "!!binary /w==", "2001-01-01",
     "!!set {a}", "&x [*x]", "&x {name: *x}", "*x", "{name: self_attention, pool: &x [*x]}", "9" * 25, "self_attention"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates(date(1, 1, 1)) | st.binary(max_size=4)
    | TEXTS | st.sampled_from(["self_attention", "shapes", "cpu"])
)  # fmt: skip


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}; a name below one that has a value of its own is left out."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {}) if isinstance(inner, dict) else inner
        if isinstance(inner, dict):
            inner[last] = value
    return tree


TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.sampled_from([8, 16, 32]) | SCALARS, inner, max_size=4)
    ),
    max_leaves=12,
)
SETTINGS = st.dictionaries(st.sampled_from(NAMES), SCALARS | TREES, max_size=4).map(nested)


@FUZZ
@given(TEXTS | st.lists(st.from_regex(r"[0-9]{1,4}(-[0-9]{1,5})?", fullmatch=True), max_size=3).map(",".join))
def test_any_seeds_are_taken_or_refused(text: str) -> None:
    """Breaks when some text is neither seeds nor a UserError."""
    try:
        seeds = parse_seeds(text)
    except UserError:
        return
    assert len(set(seeds)) == len(seeds) > 0
    assert 0 <= min(seeds) <= max(seeds) <= HIGHEST_SEED


@FUZZ
@given(TEXTS | st.lists(st.sampled_from(["cat", "3", "0-2", "7", "9-9", "a-b", " ", "٣"]), max_size=4).map(",".join),
       st.integers(0, 10))  # fmt: skip
def test_any_classes_are_taken_or_refused(text: str, num_classes: int) -> None:
    """Breaks when some text is neither classes nor a UserError."""
    class_names = ["cat", "dog", "3", "a-b", "", "ä"][:num_classes]
    try:
        classes = parse_classes(text, class_names, num_classes)
    except UserError:
        return
    assert len(set(classes)) == len(classes) > 0
    assert all(0 <= label < num_classes for label in classes)


def must_be_usable(raw: dict[str, Any], overrides: list[str]) -> None:
    """Whatever is not refused must survive being written as config.yaml and read again."""
    try:
        config = make_config(raw, overrides)
    except UserError:
        return
    assert differences(make_config(yaml.safe_load(config.to_yaml())), config) == {}


@FUZZ
@given(st.lists(st.builds("{}={}".format, st.sampled_from(NAMES) | TEXTS, VALUES | TEXTS) | TEXTS, max_size=3))
def test_any_override_is_taken_or_refused(overrides: list[str]) -> None:
    """Breaks when `--set` with some text is neither a config nor a UserError."""
    must_be_usable({}, overrides)


@FUZZ
@given(TREES | SETTINGS)
def test_any_config_is_taken_or_refused(place: Path, raw: Any) -> None:
    """Breaks when a file that is YAML is neither a config nor a UserError."""
    path = place / "fuzz.yaml"
    path.write_text(yaml.safe_dump(raw))
    try:
        load_config(path)
    except UserError:
        return
    must_be_usable(raw or {}, [])


@FUZZ
@given(
    TEXTS
    | st.lists(TEXTS | VALUES | st.sampled_from([f"{key}: " for key in KEYS]) | st.just("\n"), max_size=8).map("".join)
)
def test_any_file_is_taken_or_refused(place: Path, text: str) -> None:
    """Breaks when a file that is hardly YAML is neither a config nor a UserError."""
    path = place / "fuzz.yaml"
    path.write_text(text)
    try:
        load_config(path)
    except UserError:
        return
    must_be_usable(yaml.safe_load(path.read_text()) or {}, [])

"""What varies in an ablation: `--vary KEY=V1,V2` into variants with names that folders can have. Imports no torch."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sagan.errors import UserError

LONGEST_NAME = 100  # characters
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]*")


@dataclass(frozen=True)
class Axis:
    """Settings that have the same value, `keys` as `--set` takes them, and the values they go through."""

    keys: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """A name, and the settings by which it differs from the config."""

    name: str
    settings: dict[str, Any]

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]


def parse_axis(text: str) -> Axis:
    """ "a.b+c.d=v1,{e: 1},null" -> keys (a.b, c.d) with three values: YAML, split at the commas outside brackets."""
    names, equals, values = text.partition("=")
    keys = tuple(name.strip() for name in names.split("+"))
    if not equals or not all(key.strip(". ") for key in keys):
        raise UserError(f"--vary {text}: expected KEY=VALUE,VALUE, such as generator.attention.16=self_attention,null")
    try:
        found = yaml.safe_load(f"[{values}\n]")
        json.dumps(found)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        raise UserError(f"--vary {text}: the values are not readable as YAML, separated by commas") from None
    if not found:
        raise UserError(f"--vary {text}: no value is given; such as {keys[0]}=VALUE,VALUE, null for none")
    for key in keys:
        if key == "seed":
            raise UserError("--vary seed: is what --seeds is for; variants are compared over the same seeds")
        if key.split(".")[0] == "evaluate":
            raise UserError(f"--vary {key}: variants must be scored alike; change it for all, with --set")
    return Axis(keys, tuple(_short_form(value) for value in found))


def variants_of(axes: Sequence[Axis]) -> list[Variant]:
    """Every combination of the values, the last axis changing fastest. UserError for one that comes twice."""
    keys = [key for axis in axes for key in axis.keys]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--vary: {key} is varied twice; give all of its values at once")
    heads = [_short_key(axis.keys[0], [other.keys[0] for other in axes]) for axis in axes]
    variants: dict[str, Variant] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        parts = [_part(head, value, len(axes) == 1) for head, value in zip(heads, values, strict=True)]
        name = _plain("+".join(parts))
        if name in variants:
            raise UserError(f"--vary: the variant {name} comes twice; leave one out")
        settings = {key: value for axis, value in zip(axes, values, strict=True) for key in axis.keys}
        variants[name] = Variant(name, settings)
    return list(variants.values())


def _short_form(value: Any) -> Any:
    """{name: non_local} is non_local."""
    return value["name"] if isinstance(value, dict) and list(value) == ["name"] else value


def _part(head: str, value: Any, alone: bool) -> str:
    """A value in a name: a mechanism or none stands for itself where nothing else varies, others after their key."""
    named = value is None or isinstance(value, str) or (isinstance(value, dict) and "name" in value)
    return _words(value) if alone and named else f"{head}={_words(value)}"


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        named = [str(value["name"])] if "name" in value else []
        return ",".join([*named, *(f"{key}={_words(v)}" for key, v in value.items() if key != "name")]) or "none"
    if isinstance(value, list):
        return ",".join(map(_words, value)) or "none"
    return json.dumps(value, separators=(",", ":"))


def _short_key(key: str, keys: Sequence[str]) -> str:
    """What tells a key from the others: generator of generator.attention.16 beside discriminator.attention.16, else its
    last word and what stands behind it."""
    parts = key.split(".")
    if len(keys) > 1 and len({other.split(".", 1)[-1] for other in keys}) == 1:
        return parts[0]
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    tail = ".".join(parts[start:])
    return tail if [other for other in keys if other.endswith(f".{tail}") or other == tail] == [key] else key


def _plain(name: str) -> str:
    """The name with other characters than those of `PLAIN` replaced, and then told from others by a hash."""
    if PLAIN.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._=+,-]+", "_", name).strip("_.-")[: LONGEST_NAME - 9]
    return f"{plain}-{digest}" if plain else digest

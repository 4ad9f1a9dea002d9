"""Load a config: YAML and `--set a.b=value` become a complete, validated Config. Imports no torch.

A file holds only what differs from the defaults in schema.py; defaults that depend on the resolution (widths, attention
placement) are filled in. Files are not trusted: YAML is loaded safely, with limits on size, depth and aliases.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import BaseModel, ValidationError

from sagan.config.schema import (
    ATTENTION_RESOLUTION,
    DISCRIMINATOR_WIDTHS,
    EXPONENT,
    FRONTEND_SETTINGS,
    GENERATOR_WIDTHS,
    RESOLUTIONS,
    Config,
)
from sagan.utils.errors import UserError, first_error, suggestion
from sagan.utils.io import read_text

LARGEST_FILE, MOST_VALUES, DEEPEST = 1 << 18, 50_000, 40  # bytes, values with aliases expanded, levels of nesting
SHIPPED = next(  # inside the package in a wheel, beside it in a checkout
    folder / "configs" for folder in Path(__file__).parents[1:3] if (folder / "configs").is_dir()
)


class _Loader(yaml.SafeLoader):
    """Safe YAML loader (no object tags) with limits, in which a repeated setting is an error.

    As in YAML 1.2, the words no, off, yes and on stay words (pydantic accepts them for booleans), and 1e-4 is a number.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases expand to over {MOST_VALUES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is written twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != BOOLEAN or first in "tTfF"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def _written_out(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """Number of values in a document with all aliases expanded; a loop counts once."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"nested more than {DEEPEST} deep")
    if id(node) not in known:
        known[id(node)] = 1
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in inner for one in pair]
        known[id(node)] = 1 + sum(_written_out(one, known, depth + 1) for one in inner)
    return known[id(node)]


def load_config(path: str | os.PathLike[str] | None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file (None: the defaults), apply overrides `a.b=value` (values are YAML) and validate.

    A name such as "shapes32" or "attention/cbam" that is not a file is looked up among the shipped configs. Raises
    UserError for a missing or damaged file, an unknown setting (with the nearest known one), a wrong value, and
    settings that do not fit together.
    """
    if path is None:
        return make_config({}, overrides)
    shipped = SHIPPED / f"{path}.yaml"
    try:
        by_name = not Path(path).is_absolute() and not Path(path).is_file() and shipped.is_file()
        raw = _read_yaml(read_text(shipped if by_name else path, LARGEST_FILE))
        if raw is not None and not isinstance(raw, dict):
            raise UserError(f"{path}: a config is a mapping of settings, this is a {type(raw).__name__}")
        return make_config(raw or {}, overrides, where=str(path))
    except FileNotFoundError:
        raise _no_config(str(path)) from None
    except UserError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: a setting contains itself") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None


def as_config(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config | None, changes: Mapping[str, Any] | None = None
) -> Config:  # fmt: skip
    """The config of a name, a file, a mapping or a Config, with `changes`: dotted names of settings -> plain values.

    Raises UserError as `load_config` does.
    """
    values = {name: json.dumps(value, ensure_ascii=False, default=_plain) for name, value in (changes or {}).items()}
    overrides = [f"{name}={value}" for name, value in values.items()]
    if isinstance(config, Config):
        return make_config(config.to_dict(), overrides)
    return make_config(dict(config), overrides) if isinstance(config, Mapping) else load_config(config, overrides)


def _plain(value: Any) -> Any:
    """A path or a number of NumPy as JSON has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise UserError(f"changes: {value!r:.60} is a {type(value).__name__}, no setting; give numbers, texts, lists")


def shipped_configs() -> dict[str, str]:
    """Name -> description (the first comment) of every config shipped with sagan."""
    found = {}
    for path in sorted(SHIPPED.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.relative_to(SHIPPED).with_suffix("").as_posix()] = first.removeprefix("#").strip()
    return found


def _no_config(name: str) -> UserError:
    hint = suggestion(name, shipped_configs(), otherwise="`sagan configs` lists the shipped configs")
    return UserError(f"{name}: no such config file; {hint}")


@click.command("configs")
@click.argument("name", required=False)
def configs_cli(name: str | None) -> None:
    """List the configs that come with sagan, or print the config NAME. `sagan train NAME` uses it."""
    known = shipped_configs()
    if name is None:
        width = max(map(len, known))
        click.echo("\n".join(f"{key:{width}}  {description}" for key, description in known.items()))
    elif name in known:
        click.echo((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), nl=False)
    else:
        raise _no_config(name)


def make_config(raw: dict[str, Any], overrides: list[str] | None = None, where: str = "config") -> Config:
    """Validate plain values, as `load_config` does with those of a file."""
    raw = {name: {} if group is None and name in Config.model_fields else group for name, group in _copy(raw).items()}
    pairs = [_split_override(text) for text in overrides or []]
    for of_attention in (False, True):  # which changes the defaults that depend on the resolution
        for keys, value in pairs:
            if ("attention" in keys[:-1]) == of_attention:
                _assign(raw, keys, value)
        if not of_attention:
            _fill_in(raw)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {_describe(error)}") from None
    for name, value in _flatten(raw).items():
        if isinstance(value, str) and not _can_be_a_path(value):
            raise UserError(f"{where}: {name} holds a NUL or half a character, which no path or name has: {value!r}")
    return config


def check_processes(config: Config, processes: int) -> None:
    """Raise UserError if the global batch cannot be divided among processes and micro-batches."""
    batch, accumulation = config.training.batch_size, config.optim.accumulation
    if batch % (processes * accumulation):
        raise UserError(
            f"training.batch_size {batch} is not divisible by {processes} processes x optim.accumulation {accumulation}"
        )


def replaced(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """A copy with new values `changes[group][name]`."""
    raw = config.to_dict()
    for group, values in changes.items():
        raw[group] |= values
    return Config.model_validate(raw)


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> values of the settings in which two configs differ."""
    flat_a, flat_b = flattened(a), flattened(b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    return {n: (flat_a.get(n), flat_b.get(n)) for n in names if flat_a.get(n) != flat_b.get(n)}


def flattened(config: Config) -> dict[str, Any]:
    """Dotted name -> plain value of every setting."""
    return _flatten(config.to_dict())


def _describe(error: ValidationError) -> str:
    """The first error of pydantic as one line; for an unknown setting, with the nearest known one."""
    finding = error.errors()[0]
    if finding["type"] != "extra_forbidden":
        return first_error(error)
    *groups, name = map(str, finding["loc"])
    prefix = "".join(f"{group}." for group in groups)
    model: type[BaseModel] = Config
    for group in groups:
        if group != "frontend":  # a union; its members are named by the next group
            model = FRONTEND_SETTINGS.get(group) or model.model_fields[group].annotation  # type: ignore[assignment]
    return f"unknown setting {prefix}{name}; {suggestion(name, model.model_fields, prefix)}"


def _read_yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {DEEPEST} deep") from None
    except (TypeError, AttributeError, OverflowError) as error:  # by PyYAML, for tags that do not fit their values
        raise yaml.YAMLError(str(error)) from None


def _fill_in(raw: dict[str, Any]) -> None:
    data = raw.get("data")
    resolution = data.get("resolution", 32) if isinstance(data, dict) else 32
    if resolution not in RESOLUTIONS:
        return
    for name, widths in (("generator", GENERATOR_WIDTHS), ("discriminator", DISCRIMINATOR_WIDTHS)):
        if isinstance(network := raw.setdefault(name, {}), dict):
            network.setdefault("widths", widths[resolution])
            network.setdefault("attention", {ATTENTION_RESOLUTION[resolution]: "self_attention"})


def _split_override(text: str) -> tuple[list[Any], Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip(". "):
        raise UserError(f"--set {text}: expected NAME=VALUE, such as training.steps=1000")
    try:
        keys = [int(k) if k.isdigit() else k for k in name.strip().split(".")]
        return keys, _read_yaml(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {text}: the value is not readable as YAML") from None


def _assign(raw: dict[str, Any], keys: list[Any], value: Any) -> None:
    for i, key in enumerate(keys[:-1]):
        inner = raw.get(key)
        if isinstance(inner, str) and (keys[i - 1 : i] == ["attention"] or key == "frontend"):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            name, group = (".".join(map(str, part)) for part in (keys, keys[: i + 1]))
            raise UserError(f"--set {name}: {group} is not a group of settings")
        raw[key] = inner
        raw = inner
    raw[keys[-1]] = value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _copy(tree: Any) -> Any:
    """A copy of nested mappings in which resolutions are numbers (JSON has text keys only)."""
    if not isinstance(tree, dict):
        return tree
    return {int(k) if isinstance(k, str) and k.isdecimal() else k: _copy(v) for k, v in tree.items()}

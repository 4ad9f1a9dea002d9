"""Attention mechanisms for vision: drop-ins on feature maps, by name. Knows no GAN."""

import inspect
from typing import Any

from sagan.attention.base import AttentionMap, AttentionModule, record_attention
from sagan.attention.self_attention import SelfAttention

ATTENTION: dict[str, type[AttentionModule]] = {
    "self_attention": SelfAttention,
}


def make_attention(name: str, channels: int, resolution: int | tuple[int, int], **options: Any) -> AttentionModule:
    """Build a mechanism of the table. ValueError for an unknown name or option, with the known ones."""
    if name not in ATTENTION:
        raise ValueError(f"unknown attention {name!r}; known: {', '.join(ATTENTION)}")
    known = attention_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; known: {', '.join(known)}")
        if not _alike(options[option], known[option]):
            raise ValueError(f"{name}: {option} is {options[option]!r}, expected something like {known[option]!r}")
    return ATTENTION[name](channels, resolution, **options)


def attention_options(name: str) -> dict[str, Any]:
    """Option names of a mechanism and their defaults."""
    parameters = inspect.signature(ATTENTION[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _alike(value: Any, default: Any) -> bool:
    """Whether a value can stand where this default stands: a whole number also for a fraction, a bool for a bool."""
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


__all__ = ["ATTENTION", "AttentionMap", "AttentionModule", "attention_options", "make_attention", "record_attention"]

"""Drop-in attention mechanisms for feature maps, by name. Independent of the GAN."""

import inspect
from typing import Any

from sagan.attention.augmented_conv import AugmentedConv
from sagan.attention.base import KINDS, AttentionMap, AttentionModule, attention_modules, record_attention
from sagan.attention.cbam import CBAM
from sagan.attention.double_attention import DoubleAttention
from sagan.attention.dual_attention import DualAttention
from sagan.attention.em_attention import EmAttention
from sagan.attention.gated_positional import GatedPositional
from sagan.attention.non_local import NonLocal
from sagan.attention.residual_block import ResidualBlock
from sagan.attention.selective_kernel import SelectiveKernel
from sagan.attention.self_attention import SelfAttention
from sagan.attention.spatial_transformer import SpatialTransformer
from sagan.attention.squeeze_excitation import SqueezeExcitation
from sagan.attention.transformer import Transformer

ATTENTION: dict[str, type[AttentionModule]] = {
    "self_attention": SelfAttention,
    "non_local": NonLocal,
    "double_attention": DoubleAttention,
    "em_attention": EmAttention,
    "dual_attention": DualAttention,
    "augmented_conv": AugmentedConv,
    "gated_positional": GatedPositional,
    "transformer": Transformer,
    "squeeze_excitation": SqueezeExcitation,
    "selective_kernel": SelectiveKernel,
    "cbam": CBAM,
    "spatial_transformer": SpatialTransformer,
    "residual_block": ResidualBlock,
}


def make_attention(
    name: str, channels: int, resolution: int | tuple[int, int], place: str = "after", **options: Any
) -> AttentionModule:
    """Build a mechanism for a place. ValueError for an unknown name, place or option, with a list of the known ones.

    A mechanism that replaces a convolution (`place` "conv") has no gain.
    """
    if name not in ATTENTION:
        raise ValueError(f"unknown attention {name!r}; known: {', '.join(ATTENTION)}")
    if place not in ATTENTION[name].places:
        raise ValueError(f"{name} has no place {place!r}; known: {', '.join(ATTENTION[name].places)}")
    if place == "conv":
        if options.get("gain", "none") != "none":
            raise ValueError(f"{name} in place of a convolution has no gain; remove it, or use place after or branch")
        options["gain"] = "none"
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
    """Whether a value has the type of this default; an int also serves as a float, but a bool only as a bool."""
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


__all__ = [
    "ATTENTION",
    "KINDS",
    "AttentionMap",
    "AttentionModule",
    "attention_modules",
    "attention_options",
    "make_attention",
    "record_attention",
]

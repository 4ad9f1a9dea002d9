"""Attention where the settings place it."""

from sagan.attention import AttentionModule, make_attention
from sagan.errors import UserError
from sagan.network_settings import NetworkSettings

PLACES = ("branch", "conv", "after")


def placed_attention(
    settings: NetworkSettings, network: str, size: int, place: str, channels: int
) -> AttentionModule | None:
    """The mechanism that `settings` put at this place of the block that outputs size × size, if any.

    In a discriminator the replaced convolution still sees the map before it is halved.
    """
    at = settings.attention.get(size)
    if at is None or at.place != place:
        return None
    try:
        seen = 2 * size if (network, place) == ("discriminator", "conv") else size
        return make_attention(at.name, channels, seen, place, **at.options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{network}.attention.{size}: {error}") from None

"""The resolutions of images, and what the networks are like at each by default. Imports nothing."""

RESOLUTIONS = (32, 64, 128, 256)
GENERATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
DISCRIMINATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}
ATTENTION_RESOLUTION = {32: 16, 64: 32, 128: 32, 256: 64}


def discriminator_downs(resolution: int) -> int:
    """How many of the discriminator's blocks halve the map: to 8×8 at 32 px, to 4×4 above (recipe of SNGAN's code)."""
    return 2 if resolution == 32 else resolution.bit_length() - 3

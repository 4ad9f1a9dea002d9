"""SAGAN: train a generator, sample images, evaluate, inspect attention maps.

generator = sagan.load_snapshot("runs/shapes/snapshots/00004000")
images = generator(torch.randn(4, generator.z_dim), torch.arange(4))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagan.models.generator import Generator as Generator
    from sagan.runs.snapshot import load_snapshot as load_snapshot

__version__ = "0.1.0"
__all__ = ["Generator", "load_snapshot"]


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed."""
    if name == "load_snapshot":
        from sagan.runs.snapshot import load_snapshot

        return load_snapshot
    if name == "Generator":
        from sagan.models.generator import Generator

        return Generator
    raise AttributeError(f"module 'sagan' has no attribute {name!r}")

"""Resident memory of a process as its resource usage tells it."""

import resource
import sys

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which the peak is told


def peak_resident_mib(usage: resource.struct_rusage) -> float:
    """MiB that the process held at most."""
    return usage.ru_maxrss * UNIT / 2**20

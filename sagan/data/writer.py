"""A .npy file of images that grows by appending: memory stays flat, and their number need not be known beforehand."""

import hashlib
from typing import BinaryIO

import numpy as np


class ImageWriter:
    """Writes uint8 (N, R, R, 3) to an open file. `digest`: SHA-256 of the image bytes so far."""

    def __init__(self, file: BinaryIO, resolution: int) -> None:
        self.count, self.digest = 0, hashlib.sha256()
        self._file, self._resolution = file, resolution
        self._data_start = self._write_header()

    def append(self, pixels: np.ndarray) -> None:
        """One image, (R, R, 3)."""
        data = pixels.tobytes()
        self._file.write(data)
        self.digest.update(data)
        self.count += 1

    def finish(self) -> None:
        """Put the number of images into the header."""
        self._file.seek(0)
        assert self._write_header() == self._data_start  # NumPy pads the header so that a larger N fits in place

    def _write_header(self) -> int:
        shape = (self.count, self._resolution, self._resolution, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()

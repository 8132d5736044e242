"""Arrays that may be larger than the memory: such a one lies in a file that the system maps into it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LARGE = 2**33
"""Bytes beyond which an array lies in a file, and is neither copied nor gathered as a whole."""


def empty(shape: Sequence[int], folder: Path) -> np.ndarray:
    """A float32 array to be filled; a large one in a file without a name, which the system removes after the last use.

    Args:
        shape: Of the array.
        folder: Of the file.

    Raises:
        OSError: The folder cannot be written to, or its disk cannot hold the file.
    """
    size = 4 * math.prod(shape)
    if size <= LARGE:
        return np.empty(shape, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here; on writing to the map it would be a crash
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=np.float32, mode="w+", shape=tuple(shape))

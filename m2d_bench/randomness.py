"""Random generators drawn from names, so that what is drawn depends on nothing else."""

from __future__ import annotations

import hashlib

from torch import Generator


def generator_of(*words: object) -> Generator:
    """A fresh CPU generator for what these words name, such as a seed, a fold and a purpose."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:4], "little"))

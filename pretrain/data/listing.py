"""Lists of files, kept in little memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def encoded(path: str) -> bytes:
    """A path as bytes; names that are not UTF-8 keep theirs."""
    return path.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of a tree.

    Args:
        root: The tree.
        paths: Relative to it, with forward slashes.
        sizes: In bytes.
        unlisted: Folders that cannot be listed, and why.
    """

    root: Path
    paths: list[str]
    sizes: list[int]
    unlisted: list[tuple[str, str]]

    def digest(self) -> str:
        """Identity of the list: paths and sizes."""
        sha = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes, strict=True):
            sha.update(encoded(f"{path}\0{size}\0"))
        return sha.hexdigest()


class Paths:
    """Millions of paths in two arrays, which worker processes share; they would end up copying a list of strings.

    Args:
        paths: The paths.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        names = [encoded(path) for path in paths]
        self._text = np.frombuffer(b"".join(names), np.uint8)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._text[self._ends[index] : self._ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def fingerprint(self, *facts: object) -> str:
        """Identity of the paths in their order, together with other facts: 16 hexadecimal digits."""
        sha = hashlib.sha256(repr(facts).encode())
        sha.update(self._ends.tobytes())
        sha.update(self._text.tobytes())
        return sha.hexdigest()[:16]

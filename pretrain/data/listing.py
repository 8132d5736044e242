"""Lists of files: found in a tree, sorted, and kept in little memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2d_bench.errors import DataError


def find(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Finds files of a tree by their suffix in any case; links are followed, hidden names left out.

    Args:
        folder: Where to look.
        suffixes: Lower-case suffixes with their dot; none of them: every file.

    Returns:
        Paths relative to the folder, with forward slashes, sorted.

    Raises:
        DataError: A folder cannot be listed.
    """
    paths, visited = [], set()
    for folder_path, folders, files in os.walk(folder, onerror=_unlistable, followlinks=True):
        status = os.stat(folder_path)
        if (status.st_dev, status.st_ino) in visited:  # a link back up, or a second one to the same folder
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder_path, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        visible = [name for name in files if not name.startswith(".")]
        paths += [prefix + name for name in visible if not suffixes or os.path.splitext(name)[1].lower() in suffixes]
    return sorted(paths)


def _unlistable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}).") from error


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
    """

    root: Path
    paths: list[str]
    sizes: list[int]

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

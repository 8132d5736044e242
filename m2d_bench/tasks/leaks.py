"""Clips that stand in two splits, by name or by content."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path


def across_splits(root: Path, files: Sequence[str], splits: Sequence[str]) -> list[list[int]]:
    """Finds clips of one content in several splits.

    What is compared grows: sizes, then 4 KiB of those of one size, then all bytes of those that agree in these; hence
    a data set without such clips is not read.

    Args:
        root: Folder of the clips.
        files: Path of each below it.
        splits: Fold or split of each.

    Returns:
        Groups of clips by their index, each of one content and of two splits or more.
    """
    groups = [list(range(len(files)))]
    comparisons: list[Callable[[Path], Hashable]] = [os.path.getsize, _middle, _sha256]
    for compared in comparisons:
        alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for number, group in enumerate(groups):
            for clip in group:
                alike[number, compared(root / files[clip])].append(clip)
        groups = [group for group in alike.values() if len({splits[clip] for clip in group}) > 1]
    return groups


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) // 2 - 2048))
        return hashlib.sha256(file.read(4096)).digest()


def _sha256(path: Path) -> bytes:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            sha.update(part)
    return sha.digest()

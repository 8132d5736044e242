"""Files of a tree, and what is in one."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def find(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Finds the files of a tree; links are followed, hidden names left out.

    Args:
        folder: Where to look.

    Returns:
        Paths relative to the folder, with forward slashes, sorted; and folders that cannot be listed, with the reason.
    """
    paths, unlisted, visited = [], [], set()

    def inside(path: str) -> str:
        return os.path.relpath(path, folder).replace(os.sep, "/")

    def note(error: OSError) -> None:
        unlisted.append((inside(error.filename), f"cannot be listed ({error.strerror})."))

    for folder_path, folders, files in os.walk(folder, onerror=note, followlinks=True):
        status = os.stat(folder_path)
        if (status.st_dev, status.st_ino) in visited:  # a link back up, or a second one to the same folder
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = f"{inside(folder_path)}/".removeprefix("./")
        paths += [prefix + name for name in files if not name.startswith(".")]
    return sorted(paths), unlisted


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """Files that are not there, in their order; each folder is listed once, which is faster than to look up every file.

    Args:
        folder: Where they should be.
        files: Paths relative to the folder.
    """
    inside: dict[str, list[str]] = defaultdict(list)
    for file in files:
        inside[os.path.dirname(file)].append(file)
    missing = set()
    for parent, those in inside.items():
        prefix = os.path.join(parent, "")
        try:
            with os.scandir(folder / parent) as entries:
                there = {prefix + entry.name for entry in entries if entry.is_file()}
        except OSError:
            there = set()
        missing |= {file for file in {*those} - there if not (folder / file).is_file()}
    return [file for file in files if file in missing]


def kinds(files: Iterable[str]) -> str:
    """Numbers of files by their suffix, the most frequent first: 12 .m4a, 3 .txt."""
    counts = Counter(os.path.splitext(file)[1].lower() or "without suffix" for file in files).most_common()
    return ", ".join(f"{count} {suffix}" for suffix, count in counts[:10]) + (", …" if len(counts) > 10 else "")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    return digest(path, "sha256")


def digest(path: Path, algorithm: str, advance: Callable[[int], None] = lambda _: None) -> str:
    """Digest of a file's bytes, in hexadecimal digits.

    Args:
        path: The file.
        algorithm: One of hashlib's, such as md5.
        advance: Is told the number of bytes that were read.
    """
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            hashed.update(block)
            advance(len(block))
    return hashed.hexdigest()
